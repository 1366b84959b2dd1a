//! Parses the OpenMetrics text format (version 1.0.0) and checks the rules that scrapers rely on.

use std::collections::{BTreeMap, HashSet};

/// The value of every sample, by name with labels as written: `a_total{b="c"}`.
#[derive(Debug)]
pub struct Samples(BTreeMap<String, f64>);

impl Samples {
    /// The value of a sample, or 0 if it is missing.
    pub fn get(&self, sample: &str) -> f64 {
        self.0.get(sample).copied().unwrap_or_default()
    }

    pub fn has(&self, sample: &str) -> bool {
        self.0.contains_key(sample)
    }

    /// The samples whose names start with `start`.
    pub fn starting(&self, start: &str) -> Vec<&str> {
        self.0.keys().filter(|name| name.starts_with(start)).map(String::as_str).collect()
    }
}

#[derive(Debug)]
struct Family {
    name: String,
    kind: String,
    unit: Option<String>,
}

/// Parses a text. Panics if it breaks a rule.
pub fn parse(text: &str) -> Samples {
    let body = text.strip_suffix("# EOF\n").expect("the end is marked, and nothing is after it");
    let (mut samples, mut families, mut family) = (BTreeMap::new(), HashSet::new(), None::<Family>);
    let mut histogram: Option<(String, f64)> = None;
    for line in body.lines() {
        assert!(!line.is_empty(), "empty line");
        if let Some(meta) = line.strip_prefix("# ") {
            let (keyword, rest) = meta.split_once(' ').unwrap();
            let (name, value) = rest.split_once(' ').unwrap();
            if family.as_ref().is_none_or(|family| family.name != name) {
                assert!(families.insert(name.to_owned()), "the lines of a family are not consecutive: {line}");
                family = Some(Family { name: name.to_owned(), kind: "unknown".into(), unit: None });
            }
            let family = family.as_mut().unwrap();
            match keyword {
                "HELP" => assert!(!value.is_empty(), "{line}"),
                "TYPE" => value.clone_into(&mut family.kind),
                "UNIT" => family.unit = Some(value.to_owned()),
                _ => panic!("unknown keyword: {line}"),
            }
            continue;
        }
        let family = family.as_ref().unwrap_or_else(|| panic!("a sample of no family: {line}"));
        let (sample, value) = line.rsplit_once(' ').unwrap();
        let value: f64 = value.parse().unwrap_or_else(|_| panic!("no number: {line}"));
        let (name, labels) = read_labels(sample);
        let suffix = name.strip_prefix(&family.name).unwrap_or_else(|| panic!("not of {}: {line}", family.name));
        let expected: &[&str] = match family.kind.as_str() {
            "counter" => &["_total"],
            "gauge" => &[""],
            "histogram" => &["_bucket", "_count", "_sum"],
            other => panic!("unknown type {other}"),
        };
        assert!(expected.contains(&suffix), "{} of type {}: {line}", family.name, family.kind);
        assert!(
            family.unit.as_ref().is_none_or(|unit| family.name.ends_with(&format!("_{unit}"))),
            "the name ends with its unit"
        );
        assert!(value >= 0.0 && value.is_finite(), "{line}");
        if suffix == "_bucket" {
            let (le, others): (Vec<_>, Vec<_>) = labels.iter().partition(|(key, _)| key == "le");
            let series = format!("{others:?}");
            let bound: f64 = if le[0].1 == "+Inf" { f64::INFINITY } else { le[0].1.parse().unwrap() };
            if let Some((before, count)) = &histogram
                && *before == series
            {
                assert!(value >= *count, "buckets are not cumulative: {line}");
            }
            histogram = (bound < f64::INFINITY).then_some((series, value));
            if bound == f64::INFINITY {
                let labels: Vec<String> = others.iter().map(|(key, value)| format!("{key}=\"{value}\"")).collect();
                let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
                assert_eq!(samples.get(&format!("{}_count{labels}", family.name)), Some(&value), "{line}");
            }
        }
        assert!(samples.insert(sample.to_owned(), value).is_none(), "duplicate sample: {line}");
    }
    assert!(histogram.is_none(), "a histogram lacks +Inf");
    Samples(samples)
}

/// Name and labels of a sample.
fn read_labels(sample: &str) -> (&str, Vec<(String, String)>) {
    let Some((name, labels)) = sample.split_once('{') else { return (sample, Vec::new()) };
    let labels = labels.strip_suffix('}').unwrap_or_else(|| panic!("{sample}"));
    assert!(name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'), "{sample}");
    let pairs = labels.split("\",").map(|pair| {
        let (key, value) = pair.trim_end_matches('"').split_once("=\"").unwrap_or_else(|| panic!("{sample}"));
        assert!(!value.contains(['"', '\\', '\n']), "a label value needs escapes: {sample}");
        (key.to_owned(), value.to_owned())
    });
    (name, pairs.collect())
}
