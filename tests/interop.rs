//! Files of parameters: what PyTorch wrote is read, what is written here is what the format's
//! specification says, and what is damaged is named.

use std::path::{Path, PathBuf};

use cotangent::models::{ResNet, ResNetConfig};
use cotangent::nn::{self, Linear, Mode, Module, Slot};
use cotangent::random::Generator;
use cotangent::train::{
    checkpoint, load_state_dict_file, load_state_dict_file_partly, save_state_dict,
};
use cotangent::{DType, Device, Error, Result, Tensor};

/// The CPU, and the emulated GPU where it is built.
fn devices() -> Result<Vec<Device>> {
    let mut all = vec![Device::Cpu];
    if cfg!(feature = "emulator") {
        all.push(Device::cuda_emulated()?);
    }
    Ok(all)
}

/// The narrow ResNet-18 that PyTorch saved.
fn pytorchs() -> PathBuf {
    std::env::var_os("COTANGENT_GOLDEN")
        .map_or_else(|| "tests/golden".into(), PathBuf::from)
        .join("torch_resnet18.safetensors")
}

fn narrow(seed: u64) -> ResNet {
    let config = ResNetConfig {
        width: 8,
        ..ResNetConfig::resnet18()
    };
    ResNet::new(config, &mut Generator::new(seed)).unwrap()
}

/// Every number of a model, for comparison.
fn numbers(m: &mut dyn Module) -> Vec<(String, Vec<f64>)> {
    let numbers = |t: &Tensor| t.to_dtype(DType::F64)?.to_vec::<f64>();
    let state = nn::state_dict(m).into_iter();
    state
        .map(|(name, t)| (name, numbers(&t).unwrap()))
        .collect()
}

fn entry(e: Error, path: &Path) -> (String, String) {
    match e {
        Error::Checkpoint { path: p, name, why } if p == path => (name, why),
        e => panic!("{e}"),
    }
}

#[test]
fn pytorchs_residual_network_gives_its_logits() -> Result<()> {
    let path = pytorchs();
    let (file, _) = checkpoint::read(&path)?;
    let find = |name: &str| file.iter().find(|(n, _)| n == name).unwrap().1.clone();
    let (input, logits) = (find("_input"), find("_logits").to_vec::<f32>()?);
    for device in devices()? {
        let mut m = narrow(1);
        nn::to_device(&mut m, device)?;
        // the file holds two tensors more than the model
        let before = numbers(&mut m);
        let (name, why) = entry(load_state_dict_file(&path, &mut m).unwrap_err(), &path);
        assert_eq!(name, "_input");
        let unknown = "the model has no such parameter or buffer";
        assert_eq!(why, format!("{unknown}; _logits: {unknown}"));
        assert_eq!(numbers(&mut m), before);

        let keys = load_state_dict_file_partly(&path, &mut m)?;
        assert_eq!(keys.unexpected_keys, ["_input", "_logits"]);
        assert_eq!(keys.missing_keys, [""; 0]);
        let scores = m.forward(&input.to(device)?, Mode::Eval)?;
        assert_eq!(scores.shape()[..], [4, 10]);
        for (a, b) in scores.to_vec::<f32>()?.iter().zip(&logits) {
            assert!(
                (a - b).abs() <= 1e-5 * b.abs().max(1.0),
                "{device}: {a} {b}"
            );
        }
        // all but the two, strictly, into another model
        let mut other = narrow(2);
        let own: Vec<_> = file
            .iter()
            .filter(|(n, _)| !n.starts_with('_'))
            .cloned()
            .collect();
        nn::load_state_dict(&mut other, &own)?;
        assert_eq!(numbers(&mut other), numbers(&mut m));
    }
    Ok(())
}

#[test]
fn other_dtypes_are_rounded_to_the_models() -> Result<()> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    for device in devices()? {
        for dtype in [DType::F64, DType::F32, DType::BF16, DType::F16] {
            let mut from = narrow(3);
            nn::to_dtype(&mut from, dtype)?;
            if dtype == DType::F64 {
                // numbers that F32 has not
                nn::try_visit(&mut from, |_, slot| match slot {
                    Slot::Parameter(t) => t.copy_(&t.mul_scalar(1.0 / 3.0)?),
                    _ => Ok(()),
                })?;
            }
            save_state_dict(&path, &mut from)?;
            let mut to = narrow(4);
            nn::to_device(&mut to, device)?;
            load_state_dict_file(&path, &mut to)?;
            nn::to_dtype(&mut from, DType::F32)?;
            assert_eq!(numbers(&mut to), numbers(&mut from), "{dtype} on {device}");
            let dtypes = nn::named_parameters(&mut to);
            assert!(
                dtypes
                    .iter()
                    .all(|(_, t)| t.dtype() == DType::F32 && t.is_tracked())
            );
        }
    }
    Ok(())
}

#[test]
fn a_refused_file_is_told_apart_by_every_name() -> Result<()> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let rng = &mut Generator::new(0);
    let net = |out, bias, rng: &mut Generator| -> Result<nn::Sequential> {
        let net = nn::Sequential::new().named("fc1", Linear::new(3, out, bias, rng)?)?;
        net.named("fc2", Linear::new(out, 2, true, rng)?)
    };
    let mut other = nn::Sequential::new().named("head", Linear::new(1, 1, false, rng)?)?;
    save_state_dict(&path, &mut net(4, false, rng)?)?;
    let mut m = net(5, true, rng)?;
    let before = numbers(&mut m);
    let (name, why) = entry(load_state_dict_file(&path, &mut m).unwrap_err(), &path);
    assert_eq!(
        format!("{name}: {why}"),
        "fc1.weight: has shape [4, 3], the model wants [5, 3]; \
         fc1.bias: missing; the model wants [5]; \
         fc2.weight: has shape [2, 4], the model wants [2, 5]"
    );
    // another shape is refused even where names may differ
    let (name, why) = entry(
        load_state_dict_file_partly(&path, &mut m).unwrap_err(),
        &path,
    );
    assert_eq!(
        format!("{name}: {why}"),
        "fc1.weight: has shape [4, 3], the model wants [5, 3]; \
         fc2.weight: has shape [2, 4], the model wants [2, 5]"
    );
    assert_eq!(numbers(&mut m), before);
    // of a whole other network the first names are listed
    let (name, why) = entry(
        load_state_dict_file(pytorchs(), &mut other).unwrap_err(),
        &pytorchs(),
    );
    assert_eq!(name, "head.weight");
    assert!(
        why.starts_with("missing; the model wants [1, 1]; _input: the model has no"),
        "{why}"
    );
    assert!(why.ends_with("; and 109 more"), "{why}");
    Ok(())
}

/// A safetensors file of this header and these elements.
fn file(header: &str, elements: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend((0..elements).flat_map(|i| (i as f32).to_le_bytes()));
    file
}

#[test]
fn a_damaged_file_is_named_and_changes_nothing() -> Result<()> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let two = |weight: &str, bias: &str| {
        format!(
            r#"{{"bias":{{"dtype":"F32","shape":[2],"data_offsets":{bias}}},
                "weight":{{"dtype":"F32","shape":[2,3],"data_offsets":{weight}}}}}"#
        )
    };
    let good = two("[8,32]", "[0,8]");
    let whole = file(&good, 8);
    let n = good.len();
    let mut long = whole.clone();
    long[..8].copy_from_slice(&(n as u64 + 100).to_le_bytes());
    let mut endless = whole.clone();
    endless[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let end = n + 40;
    let cases: Vec<(Vec<u8>, &str, String)> = vec![
        (
            vec![],
            "header",
            "header too small: 0 bytes, in a file of 0".into(),
        ),
        (
            whole[..5].to_vec(),
            "header",
            "header too small: 0 bytes, in a file of 5".into(),
        ),
        (
            long,
            "header",
            format!(
                "invalid header length: {} bytes, in a file of {end}",
                n + 100
            ),
        ),
        (
            endless,
            "header",
            format!("header too large: {} bytes, in a file of {end}", u64::MAX),
        ),
        (
            whole[..end - 3].to_vec(),
            "header",
            format!("the tensors end at byte {end}, the file at {}", end - 3),
        ),
        (
            [&whole[..], b"more"].concat(),
            "header",
            format!("the tensors end at byte {end}, the file at {}", end + 4),
        ),
        (
            file(&two("[8,32]", "[100,108]"), 8),
            "weight",
            "lies at (8, 32); expected it to begin where the one before ends".into(),
        ),
        (
            file(&two("[4,28]", "[0,8]"), 8),
            "weight",
            "lies at (4, 28); expected it to begin where the one before ends".into(),
        ),
        (
            file(&two("[32,8]", "[0,8]"), 8),
            "weight",
            "lies at (32, 8); expected it to begin where the one before ends".into(),
        ),
        (
            file(&two("[8,32]", "[0,8]").replace("[2,3]", "[2,4]"), 8),
            "weight",
            "24 bytes are not [2, 4] of F32".into(),
        ),
        (
            file(&two("[8,32]", "[0,8]").replacen("F32", "F64", 1), 8),
            "bias",
            "8 bytes are not [2] of F64".into(),
        ),
        (
            file(&good.replace("[2,3]", "[18446744073709551615,3]"), 8),
            "weight",
            "24 bytes are not [18446744073709551615, 3] of F32".into(),
        ),
        (
            file(&good.replacen("F32", "I32", 1), 8),
            "bias",
            "is I32; expected F32, F64, BF16, F16, I64 or U8".into(),
        ),
    ];
    let mut m = Linear::new(3, 2, true, &mut Generator::new(0))?;
    let before = numbers(&mut m);
    for (damaged, name, why) in cases {
        std::fs::write(&path, damaged).unwrap();
        for e in [
            load_state_dict_file(&path, &mut m).unwrap_err(),
            load_state_dict_file_partly(&path, &mut m).unwrap_err(),
        ] {
            assert_eq!(entry(e, &path), (name.to_string(), why.clone()));
        }
        assert_eq!(numbers(&mut m), before);
    }
    for header in [
        "",
        "{",
        "[]",
        r#"{"weight":1}"#,
        r#"{"weight":{"dtype":"F33"}}"#,
    ] {
        std::fs::write(&path, file(header, 8)).unwrap();
        let (name, why) = entry(load_state_dict_file(&path, &mut m).unwrap_err(), &path);
        assert!(name == "header" && why.contains("JSON"), "{header}: {why}");
    }
    std::fs::write(&path, &whole).unwrap();
    load_state_dict_file(&path, &mut m)?;
    assert_eq!(m.weight.to_vec::<f32>()?, [2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
    std::fs::remove_file(&path).unwrap();
    let e = load_state_dict_file(&path, &mut m).unwrap_err();
    assert!(matches!(&e, Error::Io { path: p, .. } if *p == path), "{e}");
    Ok(())
}

/// Two tensors in another memory order than the file's.
struct Turned {
    matrix: Tensor,
    count: Tensor,
    half: Tensor,
}

impl Module for Turned {
    fn forward(&mut self, x: &Tensor, _: Mode) -> Result<Tensor> {
        Ok(x.clone())
    }
    fn visit(&mut self, v: &mut nn::Visitor<'_>) {
        v.parameter("layer.0.weight", &mut self.matrix);
        v.buffer("num_batches_tracked", &mut self.count);
        v.buffer("half", &mut self.half);
    }
    fn describe(&self) -> String {
        "Turned()".into()
    }
}

#[test]
fn a_file_is_what_the_format_says_byte_for_byte() -> Result<()> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let matrix = Tensor::from_vec(vec![1f32, 4.0, 2.0, 5.0, 3.0, 6.0], [3, 2])?;
    let mut m = Turned {
        matrix: matrix.transpose(0, 1)?.detach(),
        count: Tensor::scalar(258i64)?,
        half: Tensor::from_vec(vec![1f32, -2.0], [2])?.to_dtype(DType::BF16)?,
    };
    for device in devices()? {
        nn::to_device(&mut m, device)?;
        save_state_dict(&path, &mut m)?;
        // wider elements first, so that all are aligned; spaces until the header is, too
        let header = concat!(
            r#"{"__metadata__":{"format":"pt"},"#,
            r#""num_batches_tracked":{"dtype":"I64","shape":[],"data_offsets":[0,8]},"#,
            r#""layer.0.weight":{"dtype":"F32","shape":[2,3],"data_offsets":[8,32]},"#,
            r#""half":{"dtype":"BF16","shape":[2],"data_offsets":[32,36]}}"#
        );
        let padded = header.len().next_multiple_of(8);
        let mut expected = (padded as u64).to_le_bytes().to_vec();
        expected.extend(format!("{header:padded$}").as_bytes());
        expected.extend([2, 1, 0, 0, 0, 0, 0, 0]);
        // row by row, whatever the order in memory
        let rows = [1f32, 2.0, 3.0, 4.0, 5.0, 6.0];
        expected.extend(rows.iter().flat_map(|x| x.to_le_bytes()));
        expected.extend([0x80, 0x3f, 0x00, 0xc0]);
        assert_eq!(std::fs::read(&path).unwrap(), expected, "{device}");
    }
    Ok(())
}
