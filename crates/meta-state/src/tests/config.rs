//! Sizes, JSON, and what is refused.

use burn::{module::Module, tensor::Device};

use super::*;

/// The table of `docs/src/meta-state.md`, "Sizes", in millions of parameters, V = 50,304, heads of 64: name, L, C, RWKV-7,
/// shared W_oms, W_oms per head, values of the state.
const SIZES: [(&str, usize, usize, f64, f64, f64, f64); 4] = [
    ("150M", 12, 768, 167.7, 111.6, 118.1, 1.18),
    ("450M", 18, 1024, 342.8, 193.0, 210.7, 2.36),
    ("900M", 24, 1280, 628.8, 316.1, 353.5, 3.93),
    ("1.5B", 32, 1536, 1105.5, 504.6, 577.0, 6.29),
];

#[test]
fn the_papers_sizes_have_the_counts_of_the_reference() {
    for (name, layers, width, rwkv7, shared, per_head, state) in SIZES {
        let base = Rwkv7Config::new(50304, layers, width);
        let millions = |count: usize| (count as f64 / 1e5).round() / 10.0;
        let with = |mixer: MetaStateConfig| base.with_ffn(mixer);
        assert_eq!(millions(base.num_params_official()), rwkv7, "{name}");
        let paper = with(MetaStateConfig::paper());
        assert_eq!(millions(paper.num_params_official()), shared, "{name}");
        let practical = with(MetaStateConfig::practical());
        assert_eq!(
            millions(practical.num_params_official()),
            per_head,
            "{name}"
        );
        let matrices = paper.num_state_values() - layers * width;
        assert_eq!((matrices as f64 / 1e4).round() / 100.0, state, "{name}");
    }
}

#[test]
fn twelve_heads_of_the_largest_size_as_the_paper_says() {
    let twelve = Rwkv7Config {
        head_size: 128,
        ..Rwkv7Config::new(50304, 32, 1536)
    };
    let paper = twelve.with_ffn(MetaStateConfig::paper());
    assert_eq!(paper.n_head(), 12);
    assert_eq!(paper.num_params_official() / 100_000, 5077);
    assert_eq!(paper.num_state_values() - 32 * 1536, 12_582_912);
}

#[test]
fn counts_are_those_of_the_tensors() {
    for (name, mixer) in variants() {
        let config = small(&mixer);
        let model = config.init(&Device::default());
        assert_eq!(model.num_params(), config.num_params(), "{name}");
        let state = model.zero_state(1, &Device::default());
        assert_eq!(state.num_values(), config.num_state_values(), "{name}");
    }
}

#[test]
fn json_round_trip_presets_and_mistakes() {
    for (name, mixer) in variants() {
        let json = serde_json::to_string(&mixer).unwrap();
        let again: MetaStateConfig = serde_json::from_str(&json).unwrap();
        assert_eq!(again, mixer, "{name}");
    }
    let parse = |json: &str| serde_json::from_str::<MetaStateConfig>(json);
    assert_eq!(parse("\"paper\"").unwrap(), MetaStateConfig::paper());
    let some = parse(r#"{"sse": {"low-rank": 4}}"#).unwrap();
    let expected = MetaStateConfig::practical().with_sse(Sse::LowRank(4));
    assert_eq!(some, expected);
    for (json, named) in [
        ("\"papers\"", "practical"),
        (r#"{"omss": "shared"}"#, "omss"),
        (r#"{"oms": "split"}"#, "per-head"),
        ("3", "an object"),
    ] {
        let error = parse(json).unwrap_err().to_string();
        assert!(error.contains(named), "{json}: {error}");
    }
}

#[test]
fn options_that_make_no_layer_are_refused_with_the_reason() {
    let base = MetaStateConfig::practical;
    for (mixer, named) in [
        (base().with_sse(Sse::TopLeft(9)), "head size 8"),
        (base().with_sse(Sse::TopLeft(1)), "from 2"),
        (base().with_sse(Sse::TopLeft(0)), "top-left"),
        (base().with_sse(Sse::LowRank(9)), "low-rank"),
        (base().with_sse(Sse::Learned), "no state is read"),
        (base().with_scale(Scale::Constant(0.0)), "scale"),
        (base().with_norm_eps(0.0), "norm_eps"),
    ] {
        let error = small(&mixer).validate().unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
    }
}

#[test]
#[should_panic(expected = "no state is read")]
fn a_block_of_ones_own_model_is_checked_too() {
    let mixer = MetaStateConfig::practical().with_sse(Sse::Learned);
    small(&mixer).init_block(1, &Device::default(), 0);
}
