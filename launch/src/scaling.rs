//! The scaling of a plan over several processes: bandwidths as people write them, and the table of a command.

use interlingua_recipes::parse_bytes;
use interlingua_trainer::plan::scaling::Scaling;

use crate::table::{self, Table};

/// Bytes a second out of a text such as "50GB/s", "6.25GiB/s", or "100Gb/s" and "100Gbit/s", which are bits.
pub(crate) fn bandwidth(text: &str) -> Result<f64, String> {
    let size = text
        .trim()
        .strip_suffix("/s")
        .or_else(|| text.trim().strip_suffix("ps"));
    let bytes = size.and_then(|size| {
        let size = size.trim();
        match size.strip_suffix("bit").or_else(|| size.strip_suffix('b')) {
            Some(bits) => Some(parse_bytes(&format!("{bits}B"))? as f64 / 8.0),
            None if size.ends_with('B') => Some(parse_bytes(size)? as f64),
            None => None,
        }
    });
    bytes
        .filter(|bytes| *bytes > 0.0)
        .ok_or_else(|| "write bytes a second such as 50GB/s or 6.25GiB/s, or bits such as 100Gb/s".to_owned())
}

/// A row for each number of processes.
pub(crate) fn table(rows: &[Scaling]) -> Table {
    let mut table = Table::new([
        "processes",
        "memory of each",
        "sent by each",
        "computing",
        "waiting",
        "tokens/s",
        "efficiency",
        "if all overlapped",
    ]);
    for row in rows {
        table.row([
            row.world_size.to_string(),
            table::bytes(row.memory),
            if row.sent == 0 {
                "-".to_owned()
            } else {
                table::bytes(row.sent)
            },
            seconds(row.compute_seconds),
            seconds(row.communication_seconds),
            table::count(row.synchronous.tokens_per_second.round() as u64),
            table::percent(Some(row.synchronous.efficiency)),
            table::percent(Some(row.overlapped.efficiency)),
        ]);
    }
    table
}

/// Seconds to three digits or so, in the unit that they read best in.
fn seconds(value: f64) -> String {
    match value {
        0.0 => "-".to_owned(),
        0.0..0.001 => format!("{:.0} µs", 1e6 * value),
        0.001..1.0 => format!("{:.1} ms", 1e3 * value),
        _ => format!("{value:.2} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_an_eighth_of_bytes() {
        assert_eq!(bandwidth("50GB/s"), Ok(50e9));
        assert_eq!(bandwidth("100Gb/s"), Ok(12.5e9));
        assert_eq!(bandwidth("100Gbit/s"), Ok(12.5e9));
        assert_eq!(bandwidth("100 Gbps"), Ok(12.5e9));
        assert_eq!(bandwidth("6.25GiB/s"), Ok(6.25 * 1_073_741_824.0));
        assert_eq!(bandwidth("8Mib/s"), Ok(1_048_576.0));
        assert_eq!(bandwidth("10 MB/s"), Ok(10e6));
        for wrong in ["50GB", "fast", "/s", "0GB/s", "-1GB/s", "50/s", "50GB/h", ""] {
            assert!(bandwidth(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn seconds_read_well() {
        assert_eq!(seconds(0.0), "-");
        assert_eq!(seconds(2e-5), "20 µs");
        assert_eq!(seconds(0.0125), "12.5 ms");
        assert_eq!(seconds(12.345), "12.35 s");
    }
}
