//! The curve of a guest's writing, a line a window, each as it is known.

use migration::dirty_rate::{Rhythm, Window};
use migration::pages::PAGE_SIZE;

use super::number::{bytes, count, millis, rate};
use super::style::{Colour, Style};

/// What is said below the table of a guest that writes in bursts.
pub fn rhythm_line(rhythm: &Rhythm, style: Style) -> String {
    let (burst, every) = (millis(rhythm.burst_ms), millis(rhythm.every_ms));
    let text = format!("  It writes in bursts of {burst}, one every {every}.");
    style.paint(Colour::Bold, &text) + "\n"
}

/// A line of the table, with the head above the first.
pub fn rate_line(window: &Window, first: bool, style: Style) -> String {
    let line = |cells: [&str; 4], by_vcpu: &[String]| {
        let [time, pages, memory, speed] = cells;
        let by_vcpu: String = by_vcpu
            .iter()
            .map(|pages| format!(" {pages:>11}"))
            .collect();
        format!("  {time:>9} {pages:>11} {memory:>10} {speed:>12}{by_vcpu}")
    };
    let by_vcpu = window.pages_by_vcpu.as_deref().unwrap_or_default();
    let head = match first {
        true => {
            let names: Vec<_> = (0..by_vcpu.len())
                .map(|vcpu| format!("by vCPU {vcpu}"))
                .collect();
            let head = line(["watched", "pages", "written", "each once"], &names);
            style.paint(Colour::Faint, &head) + "\n"
        }
        false => String::new(),
    };
    let each: Vec<_> = by_vcpu.iter().map(|pages| count(*pages)).collect();
    let cells = [
        &*millis(window.window_ms),
        &*count(window.pages),
        &*bytes(window.pages.saturating_mul(PAGE_SIZE)),
        &*rate(window.bytes_per_s),
    ];
    let row = line(cells, &each);
    format!("{head}{row}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_stands_above_the_first_line_alone() {
        let window = Window {
            window_ms: 125.4,
            pages: 16_384,
            bytes_per_s: 535_000_000,
            pages_by_vcpu: None,
        };
        let first = rate_line(&window, true, Style::PLAIN);
        let lines: Vec<_> = first.lines().collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].len(), lines[1].len());
        assert!(lines[1].contains("64.0 MiB"), "{first}");
        assert_eq!(
            rate_line(&window, false, Style::PLAIN),
            format!("{}\n", lines[1])
        );
    }

    #[test]
    fn who_writes_has_a_column_each() {
        let window = Window {
            window_ms: 8000.0,
            pages: 70_000,
            bytes_per_s: 35_840_000,
            pages_by_vcpu: Some(vec![69_000, 1000]),
        };
        let text = rate_line(&window, true, Style::PLAIN);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0].len(), lines[1].len());
        assert!(lines[0].ends_with("by vCPU 0   by vCPU 1"), "{text}");
        assert!(lines[1].ends_with("69,000       1,000"), "{text}");
    }
}
