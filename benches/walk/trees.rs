//! Trees without content: directories in the root, files in each.

use std::{fs, path::Path};

use bytes::Bytes;
use castore::{
    model::{Digest, Directory, Entry, Name, Node, SizeRule},
    remote::{self, Policy},
};

/// How many directories, and how many files in each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    pub directories: u64,
    pub files: u64,
}

impl Shape {
    pub const fn new(directories: u64, files: u64) -> Self {
        Self { directories, files }
    }

    pub fn name(self) -> String {
        format!("t{}x{}", self.directories, self.files)
    }

    /// Puts the tree into a store, where it has the name [`Shape::name`].
    pub async fn put(self, store: &str) {
        let publish = remote::open_for_writing(store, &Policy::default()).unwrap();
        let mut closure = Vec::new();
        let entries = (0..self.directories).map(|directory| {
            let files = (0..self.files).map(|file| Entry {
                name: Name::new(format!("file{file:06}.txt")).unwrap(),
                node: Node::File {
                    digest: Digest::of(format!("{directory}/{file}").as_bytes()),
                    size: 1000 + file,
                    executable: false,
                },
            });
            let directory_of_files = Directory::new(files.collect()).unwrap();
            let digest = directory_of_files.digest();
            closure.push(Bytes::copy_from_slice(directory_of_files.encoded()));
            Entry {
                name: Name::new(format!("dir{directory:06}")).unwrap(),
                node: Node::Directory {
                    digest,
                    size: directory_of_files.size(SizeRule::Protocol),
                },
            }
        });
        let root = Directory::new(entries.collect()).unwrap();
        closure.insert(0, Bytes::copy_from_slice(root.encoded()));
        let node = Node::Directory {
            digest: root.digest(),
            size: root.size(SizeRule::Protocol),
        };
        publish.put_closure(root.digest(), closure).await.unwrap();
        publish
            .put_root(&Name::new(self.name()).unwrap(), &node)
            .await
            .unwrap();
        publish.sync().await.unwrap();
    }

    /// Makes the same tree of real, empty files.
    pub fn make(self, path: &Path) {
        for directory in 0..self.directories {
            let directory = path.join(format!("dir{directory:06}"));
            fs::create_dir_all(&directory).unwrap();
            for file in 0..self.files {
                fs::write(directory.join(format!("file{file:06}.txt")), b"").unwrap();
            }
        }
    }
}
