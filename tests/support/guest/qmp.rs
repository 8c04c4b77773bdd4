//! QEMU's control socket: one JSON object a line.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    time::Duration,
};

use serde_json::{Value, json};

/// QEMU answers at once; this is for a machine that is busy with other guests.
const LIMIT: Duration = Duration::from_secs(30);

pub struct Qmp {
    lines: BufReader<UnixStream>,
}

impl Qmp {
    pub fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        let mut qmp = Self {
            lines: BufReader::new(stream),
        };
        let greeting = qmp.receive();
        assert!(greeting["QMP"].is_object(), "{greeting}");
        qmp.execute("qmp_capabilities", &json!({}));
        qmp
    }

    /// Runs a command and gives what it returns; it must not fail.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Value {
        let request = json!({"execute": command, "arguments": arguments});
        writeln!(self.lines.get_mut(), "{request}").unwrap();
        loop {
            let mut answer = self.receive();
            assert!(answer["error"].is_null(), "{command}: {answer}");
            if answer.get("return").is_some() {
                return answer["return"].take();
            }
            // An event, which nothing here waits for.
        }
    }

    fn receive(&mut self) -> Value {
        let mut line = String::new();
        let read = self.lines.read_line(&mut line);
        let read = read.unwrap_or_else(|error| panic!("QEMU does not answer: {error}"));
        assert!(read > 0, "QEMU has closed its control socket");
        serde_json::from_str(&line).unwrap()
    }
}
