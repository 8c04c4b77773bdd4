//! Whatever comes in whatever order: each request is answered once, nothing waits at the end, and what was looked up can be
//! forgotten.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use crate::peer::{
    BATCH_FORGET, DESTROY, FORGET, GETATTR, INTERRUPT, LOOKUP, NOTIFY_REPLY, OPEN, Peer, READ,
    READDIR, READDIRPLUS, listed_nodes, named, open, range, u64_at,
};

const NAMES: [&str; 8] = [
    "hello", "large", "chunk", "deep", "er", "inner", "same-a", "absent",
];

#[derive(Debug, Clone)]
enum Step {
    Lookup(prop::sample::Index, usize),
    Forget(prop::sample::Index, u64),
    BatchForget(Vec<(prop::sample::Index, u64)>, u32),
    Getattr(prop::sample::Index),
    Open(prop::sample::Index, i32),
    Read(prop::sample::Index, u64, u32),
    List(prop::sample::Index, u64, u32, bool),
    /// Of a request that was sent (a distance back), or will be (forth).
    Interrupt(i64),
    Any(u32, u64, Vec<u8>),
    /// A message that is cut.
    Bytes(Vec<u8>),
    /// The next requests come from a caller that cannot be seen, or from this process.
    Hidden(bool),
    /// Everything that was sent so far is waited for.
    Settle,
}

fn step() -> impl Strategy<Value = Step> {
    let node = any::<prop::sample::Index>;
    prop_oneof![
        6 => (node(), 0..NAMES.len()).prop_map(|(parent, name)| Step::Lookup(parent, name)),
        2 => (node(), 0..3_u64).prop_map(|(node, count)| Step::Forget(node, count)),
        1 => (node(), any::<u64>()).prop_map(|(node, count)| Step::Forget(node, count)),
        1 => (prop::collection::vec((node(), 0..3_u64), 0..4), 0..9_u32)
            .prop_map(|(nodes, count)| Step::BatchForget(nodes, count)),
        2 => node().prop_map(Step::Getattr),
        1 => (node(), any::<i32>()).prop_map(|(node, flags)| Step::Open(node, flags)),
        4 => (node(), 0..6_000_000_u64, 0..70_000_u32)
            .prop_map(|(node, offset, size)| Step::Read(node, offset, size)),
        1 => (node(), any::<u64>(), any::<u32>().prop_map(|size| size % 70_000))
            .prop_map(|(node, offset, size)| Step::Read(node, offset, size)),
        2 => (node(), 0..30_u64, 0..9_000_u32, any::<bool>())
            .prop_map(|(node, offset, size, plus)| Step::List(node, offset, size, plus)),
        4 => (-3..3_i64).prop_map(Step::Interrupt),
        2 => (0..60_u32, 0..9_u64, prop::collection::vec(any::<u8>(), 0..130))
            .prop_map(|(opcode, node, body)| Step::Any(opcode, node, body)),
        1 => prop::collection::vec(any::<u8>(), 1..40).prop_map(Step::Bytes),
        1 => any::<bool>().prop_map(Step::Hidden),
        1 => Just(Step::Settle),
    ]
}

/// What is known of the session.
struct Session {
    peer: Peer,
    /// Node ids that were ever given.
    nodes: Vec<u64>,
    /// Requests that are to be answered, with their operation.
    open: BTreeMap<u64, u32>,
    answered: BTreeSet<u64>,
    last: u64,
    caller: u32,
}

impl Session {
    fn send(&mut self, opcode: u32, node: u64, body: &[u8]) {
        self.last = self.peer.send_from(self.caller, opcode, node, body);
        if !matches!(opcode, FORGET | BATCH_FORGET | INTERRUPT | NOTIFY_REPLY) {
            self.open.insert(self.last, opcode);
        }
    }

    /// Takes the next answer; false when it is that of DESTROY.
    fn take(&mut self) -> bool {
        let answered = self.peer.receive();
        let opcode = self.open.remove(&answered.unique);
        let opcode = opcode.unwrap_or_else(|| panic!("an answer of nothing: {answered:?}"));
        assert!(self.answered.insert(answered.unique));
        if answered.errno == 0 {
            match opcode {
                LOOKUP => self.nodes.push(u64_at(&answered.body, 0)),
                READDIRPLUS => self.nodes.extend(listed_nodes(&answered.body)),
                _ => {}
            }
            self.nodes.retain(|node| *node != 0);
        }
        opcode != DESTROY
    }

    fn run(&mut self, step: Step) {
        let nodes = self.nodes.clone();
        let at = move |index: prop::sample::Index| nodes[index.index(nodes.len())];
        match step {
            Step::Lookup(parent, name) => self.send(LOOKUP, at(parent), &named(NAMES[name])),
            Step::Forget(node, count) => self.send(FORGET, at(node), &count.to_ne_bytes()),
            Step::BatchForget(nodes, count) => {
                let mut body = [count.to_ne_bytes(), [0; 4]].concat();
                for (node, count) in nodes {
                    body.extend(at(node).to_ne_bytes());
                    body.extend(count.to_ne_bytes());
                }
                self.send(BATCH_FORGET, 0, &body);
            }
            Step::Getattr(node) => self.send(GETATTR, at(node), &[0; 16]),
            Step::Open(node, flags) => self.send(OPEN, at(node), &open(flags)),
            Step::Read(node, offset, size) => self.send(READ, at(node), &range(offset, size)),
            Step::List(node, offset, size, plus) => {
                let opcode = if plus { READDIRPLUS } else { READDIR };
                self.send(opcode, at(node), &range(offset, size));
            }
            Step::Interrupt(distance) => {
                let of = self.last.saturating_add_signed(2 * distance);
                self.send(INTERRUPT, 0, &of.to_ne_bytes());
            }
            // A second INIT or a DESTROY ends nothing here, but DESTROY marks the end below.
            Step::Any(opcode, node, body) if opcode != DESTROY => self.send(opcode, node, &body),
            Step::Any(..) => {}
            Step::Bytes(bytes) => self.peer.send_bytes(&bytes),
            Step::Hidden(hidden) => self.caller = if hidden { 0 } else { std::process::id() },
            Step::Settle => {
                while !self.open.is_empty() {
                    self.take();
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn each_request_is_answered_once(steps in prop::collection::vec(step(), 1..60)) {
        let mut session = Session {
            peer: Peer::new(),
            nodes: vec![1],
            open: BTreeMap::new(),
            answered: BTreeSet::new(),
            last: 1,
            caller: std::process::id(),
        };
        for step in steps {
            session.run(step);
        }
        session.send(DESTROY, 0, &[]);
        while session.take() {}
        // DESTROY ends what waits, so it is the last answer but for those that were just being given.
        while !session.open.is_empty() {
            session.take();
        }
        prop_assert_eq!(session.peer.dispatcher.waiting(), 0);
        for node in session.nodes.clone() {
            session.send(FORGET, node, &u64::MAX.to_ne_bytes());
        }
        session.send(GETATTR, 1, &[0; 16]);
        session.take();
        prop_assert_eq!(session.peer.fs.inode_count(), 1);
    }
}
