//! The curve of a guest's writing, a line a window, each as it is known.

use migration::dirty_rate::Window;
use migration::pages::PAGE_SIZE;

use super::number::{bytes, count, millis, rate};
use super::style::{Colour, Style};

/// A line of the table, with the head above the first.
pub fn rate_line(window: &Window, first: bool, style: Style) -> String {
    let line = |cells: [&str; 4]| {
        let [time, pages, memory, speed] = cells;
        format!("  {time:>9} {pages:>11} {memory:>10} {speed:>12}")
    };
    let head = match first {
        true => {
            let head = line(["watched", "pages", "written", "each once"]);
            style.paint(Colour::Faint, &head) + "\n"
        }
        false => String::new(),
    };
    let row = line([
        &millis(window.window_ms),
        &count(window.pages),
        &bytes(window.pages.saturating_mul(PAGE_SIZE)),
        &rate(window.bytes_per_s),
    ]);
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
}
