//! The figures for people: a line for each traffic, a column a program, and how they compare.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::plan::Row;

/// A table for each host, and what was wanted of it.
pub fn table(rows: &[Row]) -> String {
    let hosts: BTreeSet<usize> = rows.iter().map(|row| row.processors).collect();
    let of = |processors: usize| {
        let rows: Vec<&Row> = (rows.iter())
            .filter(|row| row.processors == processors)
            .collect();
        format!(
            "On a host of {processors} processor(s):\n{}",
            of_host(&rows)
        )
    };
    hosts.into_iter().map(of).collect()
}

fn of_host(rows: &[&Row]) -> String {
    let mut programs: Vec<&str> = Vec::new();
    let mut lines: Vec<(&str, usize, &str)> = Vec::new();
    for row in rows {
        if !programs.contains(&&*row.program) {
            programs.push(&row.program);
        }
        let line = (&*row.direction, row.guests, &*row.protocol);
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    let mut text = format!("{:<13}{:>7}  {:<11}", "", "guests", "");
    for program in &programs {
        let _ = write!(text, "{:>24}", format!("{program}, (CPU s/Gbit)"));
    }
    let _ = writeln!(text, "{:>12}{:>12}", "ferry/qemu", "ferry/vhost");
    for (direction, guests, protocol) in lines {
        let find = |program| find(rows, program, (direction, guests, protocol));
        let _ = write!(text, "{direction:<13}{guests:>7}  {protocol:<11}");
        for program in &programs {
            let cell = find(program).map_or_else(String::new, |row| {
                format!("{} ({:.3})", rate(row.bits_per_s), row.cpu_s_per_gbit)
            });
            let _ = write!(text, "{cell:>24}");
        }
        for other in ["qemu", "qemu-vhost"] {
            let cell = match (find("ferry"), find(other)) {
                (Some(ours), Some(theirs)) => format!("{:.2}", ours.bits_per_s / theirs.bits_per_s),
                _ => String::new(),
            };
            let _ = write!(text, "{cell:>12}");
        }
        text.push('\n');
    }
    text + &together(rows)
}

/// A program's row of that traffic: direction, guests, protocol.
fn find<'a>(rows: &[&'a Row], program: &str, traffic: (&str, usize, &str)) -> Option<&'a Row> {
    rows.iter().copied().find(|row| {
        row.program == program && (&*row.direction, row.guests, &*row.protocol) == traffic
    })
}

/// What four of Ferry's guests carry together, of what one carries, and natively four ends of one.
fn together(rows: &[&Row]) -> String {
    let of_one = |program, four: &Row| {
        let find = |guests| find(rows, program, (&four.direction, guests, &four.protocol));
        Some(100.0 * find(4)?.bits_per_s / find(1)?.bits_per_s)
    };
    let mut text = String::new();
    let fours = rows.iter().filter(|row| row.guests == 4);
    for four in fours.filter(|row| row.program == "ferry") {
        let Some(percent) = of_one("ferry", four) else {
            continue;
        };
        let natively = of_one("native", four)
            .map_or_else(String::new, |percent| format!(", natively {percent:.0} %"));
        let _ = writeln!(
            text,
            "{} {}: four guests carry {percent:.0} % of what one carries{natively}",
            four.direction, four.protocol
        );
    }
    text
}

/// Bits a second, in three figures or so.
fn rate(bits: f64) -> String {
    match bits {
        0.0..1e6 => format!("{:.1} kbit/s", bits / 1e3),
        1e6..1e9 => format!("{:.1} Mbit/s", bits / 1e6),
        _ => format!("{:.2} Gbit/s", bits / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_stand_side_by_side() {
        let row = |program: &str, guests, bits_per_s| Row {
            program: program.to_owned(),
            direction: "guest->host".to_owned(),
            guests,
            protocol: "TCP_STREAM".to_owned(),
            bits_per_s,
            cpu_s_per_gbit: 0.5,
            frames_per_s: 0.0,
            processors: 1,
        };
        let rows = [
            row("ferry", 1, 2e9),
            row("qemu", 1, 1e9),
            row("ferry", 4, 1.8e9),
            row("native", 1, 4e9),
            row("native", 4, 3.8e9),
        ];
        let text = table(&rows);
        let line = text.lines().nth(2).unwrap_or_default();
        assert!(
            line.contains("2.00 Gbit/s (0.500)") && line.ends_with("2.00            "),
            "{text}"
        );
        assert!(
            text.contains("four guests carry 90 % of what one carries, natively 95 %"),
            "{text}"
        );
        // Rows of another host are none of these.
        let mut other = row("ferry", 4, 3e9);
        other.processors = 2;
        let two = table(&[&rows[..], &[other]].concat());
        assert!(two.starts_with(&text), "{two}");
        assert!(two[text.len()..].starts_with("On a host of 2"), "{two}");
    }
}
