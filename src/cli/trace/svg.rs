use std::fmt::Write;

use crate::prefetch::{Event, Trace, TracedFile, What};

/// Of the picture, in pixels: the plot, and what is around it.
const WIDTH: f64 = 1200.0;
const LEFT: f64 = 260.0;
const TOP: f64 = 60.0;
const BOTTOM: f64 = 40.0;
/// Height of the lane of the largest file, and of the smallest.
const TALL: f64 = 240.0;
const LOW: f64 = 3.0;
/// A lane that is lower has no name beside it.
const NAMED: f64 = 9.0;
/// Files that are drawn, those that were met first.
const FILES: usize = 500;
/// Parts of the time axis.
const TICKS: u32 = 10;

/// Draws time from left to right, and each file from top to bottom in a lane of its own.
#[expect(clippy::cast_precision_loss, reason = "a picture")]
pub(super) fn draw(trace: &Trace, title: &str) -> String {
    let files = &trace.files[..trace.files.len().min(FILES)];
    let largest = files.iter().map(|file| file.size).max().unwrap_or(1).max(1);
    let mut lanes = Vec::with_capacity(files.len());
    let mut bottom = TOP;
    for file in files {
        let height = (TALL * file.size as f64 / largest as f64).max(LOW);
        lanes.push((bottom, height));
        bottom += height + 1.0;
    }
    let last = trace.events.iter().map(|event| event.at).max();
    let time = last.unwrap_or(1).max(1) as f64;
    let (width, height) = (LEFT + WIDTH + 20.0, bottom + BOTTOM);
    let mut out = String::new();
    // Writing into a string does not fail.
    let _ = writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
         viewBox=\"0 0 {width:.0} {height:.0}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"20\" font-size=\"15\">{}</text>",
        escaped(title)
    );
    legend(&mut out, trace, files.len());
    for (file, (top, height)) in files.iter().zip(&lanes) {
        lane(&mut out, file, *top, *height);
    }
    for tick in 0..=TICKS {
        let share = f64::from(tick) / f64::from(TICKS);
        let x = LEFT + WIDTH * share;
        let _ = writeln!(
            out,
            "<line x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{bottom:.1}\" stroke=\"#ccc\"/>\n\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{:.3} s</text>",
            bottom + 16.0,
            time * share / 1e6
        );
    }
    // What matters most is drawn last.
    let mut events: Vec<&Event> = trace
        .events
        .iter()
        .filter(|event| event.file < files.len())
        .collect();
    events.sort_by_key(|event| event.what);
    for event in events {
        let (top, height) = lanes[event.file];
        let size = files[event.file].size.max(1) as f64;
        let y = top + height * event.range.start as f64 / size;
        let tall = height * (event.range.end - event.range.start) as f64 / size;
        let x = LEFT + WIDTH * event.at as f64 / time;
        let _ = writeln!(
            out,
            "<rect x=\"{:.1}\" y=\"{y:.1}\" width=\"2\" height=\"{:.1}\" fill=\"{}\"/>",
            x - 1.0,
            tall.max(1.0),
            colour(event.what)
        );
    }
    out.push_str("</svg>\n");
    out
}

fn legend(out: &mut String, trace: &Trace, drawn: usize) {
    let kinds = [
        (What::Prefetched, "fetched ahead"),
        (What::Read, "read, was there"),
        (What::Missed, "read, had to wait"),
    ];
    let mut x = LEFT;
    for (what, words) in kinds {
        let _ = writeln!(
            out,
            "<rect x=\"{x}\" y=\"33\" width=\"10\" height=\"10\" fill=\"{}\"/>\
             <text x=\"{}\" y=\"42\">{words}</text>",
            colour(what),
            x + 14.0
        );
        x += 150.0;
    }
    if drawn < trace.files.len() || trace.cut_short {
        let _ = writeln!(
            out,
            "<text x=\"{x}\" y=\"42\">{drawn} of {} files are drawn{}</text>",
            trace.files.len(),
            if trace.cut_short {
                "; there were too many events"
            } else {
                ""
            }
        );
    }
}

fn lane(out: &mut String, file: &TracedFile, top: f64, height: f64) {
    let name = escaped(&file.path);
    let _ = writeln!(
        out,
        "<rect x=\"{LEFT}\" y=\"{top:.1}\" width=\"{WIDTH}\" height=\"{height:.1}\" fill=\"#f4f4f4\">\
         <title>{name}, {} bytes</title></rect>",
        file.size
    );
    if height >= NAMED {
        // The end of a path says more than its beginning.
        let short: String = match file.path.chars().count() {
            0..=40 => file.path.clone(),
            count => format!(
                "…{}",
                file.path.chars().skip(count - 39).collect::<String>()
            ),
        };
        let _ = writeln!(
            out,
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 6.0,
            top + (height / 2.0).min(20.0) + 4.0,
            escaped(&short)
        );
    }
}

const fn colour(what: What) -> &'static str {
    match what {
        What::Prefetched => "#7bc47f",
        What::Read => "#2563b0",
        What::Missed => "#d62728",
    }
}

/// As text of an XML document, which must not have control characters either.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for char in text.chars() {
        match char {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            char if char.is_control() => out.push('\u{fffd}'),
            char => out.push(char),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_draws_each_event_in_its_lane() {
        let file = |path: &str, size| TracedFile {
            path: path.to_owned(),
            size,
        };
        let event = |at, file, what, range| Event {
            at,
            file,
            what,
            range,
        };
        let trace = Trace {
            files: vec![file("a<b>&\u{1}", 100), file("small", 1)],
            events: vec![
                event(0, 0, What::Missed, 0..50),
                event(1000, 0, What::Prefetched, 50..100),
                event(2000, 1, What::Read, 0..1),
            ],
            cut_short: false,
        };
        let drawn = draw(&trace, "t");
        assert!(drawn.starts_with("<svg ") && drawn.ends_with("</svg>\n"));
        assert!(drawn.contains("a&lt;b&gt;&amp;\u{fffd}"));
        let lines: Vec<_> = drawn
            .lines()
            .filter(|line| line.contains("width=\"2\""))
            .collect();
        assert_eq!(lines.len(), 3);
        // The second half of the first lane, in the middle of the time.
        let half = format!(
            "x=\"{:.1}\" y=\"{:.1}\"",
            LEFT + WIDTH / 2.0 - 1.0,
            TOP + TALL / 2.0
        );
        assert!(lines[0].contains(&half), "{}", lines[0]);
        assert!(lines[2].contains(colour(What::Missed)));
        // Nothing happened.
        assert!(draw(&Trace::default(), "").ends_with("</svg>\n"));
    }
}
