//! Numbers as people read them: three figures and a unit.

/// Bytes in powers of 1024: `512 B`, `1.50 GiB`.
pub fn bytes(value: u64) -> String {
    scaled(
        value,
        1024,
        &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"],
    )
}

/// Bytes a second as a link's bits a second, in powers of 1000: `941 Mbit/s`.
pub fn rate(bytes_per_s: u64) -> String {
    let units = [
        "bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s", "Pbit/s", "Ebit/s",
    ];
    scaled(bytes_per_s.saturating_mul(8), 1000, &units)
}

/// A number with its thousands apart: `262,144`.
pub fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Milliseconds, as they are or as the next larger unit: `0.42 ms`, `48.3 ms`, `9.21 s`, `2 min 05 s`.
pub fn millis(value: f64) -> String {
    if !value.is_finite() {
        return "-".to_owned();
    }
    // Rounded first, so that 999.96 ms is 1.00 s and not 1000 ms.
    if value < 999.5 {
        return format!("{} ms", three_figures(value));
    }
    let seconds = value / 1000.0;
    if seconds < 59.95 {
        return format!("{} s", three_figures(seconds));
    }
    let whole = seconds.round();
    let (hours, rest) = ((whole / 3600.0).floor(), whole % 3600.0);
    let (minutes, seconds) = ((rest / 60.0).floor(), rest % 60.0);
    if hours > 0.0 {
        format!("{hours} h {minutes:02} min")
    } else {
        format!("{minutes} min {seconds:02} s")
    }
}

/// Three figures: `0.42`, `4.20`, `42.0`, `420`.
fn three_figures(value: f64) -> String {
    if value < 9.995 {
        format!("{value:.2}")
    } else if value < 99.95 {
        format!("{value:.1}")
    } else {
        format!("{value:.0}")
    }
}

fn scaled(value: u64, base: u64, units: &[&str]) -> String {
    let mut unit = 0;
    let mut scale = 1u64;
    // Past three figures, rounded, the next unit reads better.
    while unit + 1 < units.len() && value / scale >= base {
        let Some(next) = scale.checked_mul(base) else {
            break;
        };
        scale = next;
        unit += 1;
    }
    let name = units.get(unit).copied().unwrap_or_default();
    if scale == 1 {
        return format!("{value} {name}");
    }
    // Exact up to 2^53, and three figures are shown.
    #[allow(clippy::cast_precision_loss, reason = "three figures are shown")]
    let number = value as f64 / scale as f64;
    format!("{} {name}", three_figures(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let table = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (1 << 20, "1.00 MiB"),
            (1_288_490_189, "1.20 GiB"),
            (123 << 30, "123 GiB"),
            (u64::MAX, "16.0 EiB"),
        ];
        for (value, text) in table {
            assert_eq!(bytes(value), text);
        }
    }

    #[test]
    fn rates() {
        let table = [
            (0, "0 bit/s"),
            (124, "992 bit/s"),
            (125, "1.00 kbit/s"),
            (117_625_000, "941 Mbit/s"),
            (1_250_000_000, "10.0 Gbit/s"),
            (u64::MAX, "18.4 Ebit/s"),
        ];
        for (value, text) in table {
            assert_eq!(rate(value), text);
        }
    }

    #[test]
    fn counts() {
        let table = [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (262_144, "262,144"),
            (u64::MAX, "18,446,744,073,709,551,615"),
        ];
        for (value, text) in table {
            assert_eq!(count(value), text);
        }
    }

    #[test]
    fn times() {
        let table = [
            (0.0, "0.00 ms"),
            (0.424, "0.42 ms"),
            (9.999, "10.0 ms"),
            (48.26, "48.3 ms"),
            (99.96, "100 ms"),
            (999.9, "1.00 s"),
            (9_211.0, "9.21 s"),
            (59_990.0, "1 min 00 s"),
            (125_400.0, "2 min 05 s"),
            (3_661_000.0, "1 h 01 min"),
            (f64::NAN, "-"),
            (f64::INFINITY, "-"),
        ];
        for (value, text) in table {
            assert_eq!(millis(value), text, "{value}");
        }
    }
}
