//! Rotary frequencies against those of Transformers (`fixtures/rope.py`), through both spellings of `config.json`.

#![cfg(test)]

use std::path::Path;

use interlingua_checkpoints::config::ModelConfig;
use interlingua_checkpoints::rope::inv_freq;
use serde_json::Value;

#[test]
fn frequencies_equal_those_of_transformers() {
    let rows: Vec<Value> = serde_json::from_str(include_str!("fixtures/rope.json")).unwrap();
    assert_eq!(rows.len(), 18);
    for row in rows {
        let read = |key: &str| ModelConfig::from_json(&row[key], Path::new(key)).unwrap();
        let config = read("config_v4");
        assert_eq!(config, read("config_v5"));
        let length = row["length"].as_u64().unwrap() as usize;
        assert_eq!(
            config.blocks[0].attention.head_dim as u64,
            row["head_dim"].as_u64().unwrap()
        );
        let (frequencies, attention_factor) = inv_freq(&config.ropes[0], length);
        assert_eq!(attention_factor, row["attention_factor"].as_f64().unwrap() as f32);
        let expected: Vec<f32> = row["inv_freq"]
            .as_array()
            .unwrap()
            .iter()
            .map(|value| value.as_f64().unwrap() as f32)
            .collect();
        assert_eq!(frequencies.len(), expected.len());
        for (found, expected) in frequencies.iter().zip(expected) {
            // A few units in the last place: the two libraries' powers are rounded differently.
            assert!(
                (found - expected).abs() <= 6e-7 * expected,
                "{}: {found} is not {expected}",
                row["config_v4"]
            );
        }
    }
}
