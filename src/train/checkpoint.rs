//! Files of tensors: parameters as PyTorch reads them, and checkpoints that resume a run bit for
//! bit. Both are safetensors.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use bytemuck::Pod;
use flate2::Crc;
use safetensors::tensor::{Dtype, Metadata, TensorInfo, TensorView};
use safetensors::{SafeTensorError, SafeTensors};
use serde::{Deserialize, Serialize};

use crate::device::Device;
use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use crate::nn::{self, IncompatibleKeys, Module, Slot};
use crate::optim::ScheduleState;
use crate::random::Generator;
use crate::tensor::Tensor;
use crate::train::amp::GradScaler;
use crate::train::files::write_atomic;
use crate::train::history::History;
use crate::with_element;

/// Tensors by name.
pub type Named = Vec<(String, Tensor)>;

/// Write a model's parameters and buffers under PyTorch's names, for
/// `safetensors.torch.load_file` and [`load_state_dict_file`]. Atomic.
pub fn save_state_dict(path: impl AsRef<Path>, model: &mut (impl Module + ?Sized)) -> Result<()> {
    save_named(path.as_ref(), &nn::state_dict(model))
}

/// [`save_state_dict`] of parameters and buffers that are not in a model.
pub(super) fn save_named(path: &Path, tensors: &Named) -> Result<()> {
    write(path, tensors, ("format", "pt".into()))
}

/// Read parameters and buffers, from here or from PyTorch, into a model. Numbers of another dtype
/// (F64, BF16 or F16 for a model of F32) are rounded to the model's. A file that is damaged or of
/// another model is an [`Error::Checkpoint`] that names the entries, and nothing is changed.
pub fn load_state_dict_file(
    path: impl AsRef<Path>,
    model: &mut (impl Module + ?Sized),
) -> Result<()> {
    let path = path.as_ref();
    let (tensors, _) = read(path)?;
    nn::load_state_dict(model, &tensors).map_err(in_file(path))
}

/// [`load_state_dict_file`] of what both have, as PyTorch's with `strict=False`: what is missing
/// or unknown is returned. A shape that differs is an error all the same.
pub fn load_state_dict_file_partly(
    path: impl AsRef<Path>,
    model: &mut (impl Module + ?Sized),
) -> Result<IncompatibleKeys> {
    let path = path.as_ref();
    let (tensors, _) = read(path)?;
    nn::load_state_dict_partly(model, &tensors).map_err(in_file(path))
}

/// All that a run needs to go on.
#[derive(Clone)]
pub struct Checkpoint {
    /// The model's parameters and buffers; `model.*` in the file.
    pub model: Named,
    /// The optimizer's state; `optim.*` in the file.
    pub optimizer: Named,
    /// Parameters and buffers of the best epoch, none before the first; `best.*` in the file.
    pub best: Named,
    /// Everything else, as JSON in the file's metadata.
    pub run: Run,
}

/// Where a run stands, and what it is a run of.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    /// The model's description.
    pub model: String,
    /// The training images in words.
    pub data: String,
    /// The settings that must not change on the way.
    pub settings: serde_json::Value,
    /// Batches of the current epoch that are done.
    pub batch: usize,
    /// Training images of the current epoch that were classified right.
    pub correct: usize,
    /// Seconds spent in the current epoch.
    pub seconds: f64,
    /// What the learning rate's schedule remembers.
    pub schedule: ScheduleState,
    /// The model's random streams by name.
    pub generators: BTreeMap<String, Generator>,
    /// The loss scale of a run in F16.
    #[serde(default)]
    pub scaler: Option<GradScaler>,
    /// The record so far; it counts the epochs and the steps.
    pub history: History,
}

/// The layout of a checkpoint; another number is refused.
const VERSION: u32 = 1;
/// The metadata's one key: `VERSION CRC JSON`.
const KEY: &str = "cotangent";
const PARTS: [&str; 3] = ["model", "optim", "best"];

impl Checkpoint {
    /// Write it atomically: where that fails, an earlier file is untouched.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let mut tensors = Named::new();
        for (part, named) in PARTS.iter().zip([&self.model, &self.optimizer, &self.best]) {
            let prefixed = named
                .iter()
                .map(|(n, t)| Ok((format!("{part}.{n}"), t.moved(Device::Cpu)?)))
                .collect::<Result<Named>>()?;
            tensors.extend(prefixed);
        }
        let json = serde_json::to_string(&self.run)
            .map_err(|e| refuse(path, "metadata", e.to_string()))?;
        let crc = checksum(&json, &tensors)?;
        write(path, &tensors, (KEY, format!("{VERSION} {crc:08x} {json}")))
    }

    /// Read and verify a checkpoint: structure, version and checksum.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let refuse = |name: &str, why: String| refuse(path, name, why);
        let (tensors, mut metadata) = read(path)?;
        let Some(text) = metadata.remove(KEY) else {
            let why = "not a checkpoint of a run: only its tensors are here".into();
            return Err(refuse("metadata", why));
        };
        let mut fields = text.splitn(3, ' ');
        let [version, crc, json] = [(); 3].map(|()| fields.next().unwrap_or_default());
        if version != VERSION.to_string() {
            let why = format!("is {version:?}; this program reads version {VERSION}");
            return Err(refuse("version", why));
        }
        let found = format!("{:08x}", checksum(json, &tensors)?);
        if crc != found {
            let why = format!("is {found}; the file was written with {crc}: it is damaged");
            return Err(refuse("checksum", why));
        }
        let run = serde_json::from_str(json).map_err(|e| refuse("metadata", e.to_string()))?;
        let mut parts = [(); 3].map(|()| Named::new());
        for (name, tensor) in tensors {
            let split = name.split_once('.');
            let place = split.and_then(|(part, _)| PARTS.iter().position(|p| *p == part));
            let (Some((_, rest)), Some(place)) = (split, place) else {
                let why = format!("expected one of {PARTS:?} and a dot before the name");
                return Err(refuse(&name, why));
            };
            parts[place].push((rest.into(), tensor));
        }
        let [model, optimizer, best] = parts;
        Ok(Checkpoint {
            model,
            optimizer,
            best,
            run,
        })
    }
}

/// A model's random streams by name.
pub fn generators(model: &mut (impl Module + ?Sized)) -> BTreeMap<String, Generator> {
    let mut all = BTreeMap::new();
    nn::visit(model, |name, slot| {
        if let Slot::Generator(g) = slot {
            all.insert(name.to_string(), *g);
        }
    });
    all
}

/// Put a model's random streams where they were.
pub fn set_generators(
    model: &mut (impl Module + ?Sized),
    generators: &BTreeMap<String, Generator>,
) {
    nn::visit(model, |name, slot| {
        if let (Slot::Generator(g), Some(saved)) = (slot, generators.get(name)) {
            *g = *saved;
        }
    });
}

/// An [`Error::Checkpoint`] unless `saved` holds the very names, shapes and dtypes of `own`.
pub(super) fn verify(path: &Path, part: &str, own: &Named, saved: &Named) -> Result<()> {
    let by_name: HashMap<&str, &Tensor> = saved.iter().map(|(n, t)| (n.as_str(), t)).collect();
    for (name, t) in own {
        let name = format!("{part}.{name}");
        let expected = format!("expected {:?} of {}", t.shape(), t.dtype());
        match by_name.get(&name[part.len() + 1..]) {
            None => return Err(refuse(path, &name, format!("missing; {expected}"))),
            Some(s) if s.shape() != t.shape() || s.dtype() != t.dtype() => {
                let why = format!("is {:?} of {}; {expected}", s.shape(), s.dtype());
                return Err(refuse(path, &name, why));
            }
            Some(_) => {}
        }
    }
    match saved.iter().find(|(n, _)| !own.iter().any(|(o, _)| o == n)) {
        Some((name, _)) => {
            let why = "the model has no such parameter or buffer".into();
            Err(refuse(path, &format!("{part}.{name}"), why))
        }
        None => Ok(()),
    }
}

pub(super) fn refuse(path: &Path, name: &str, why: String) -> Error {
    Error::Checkpoint {
        path: path.into(),
        name: name.into(),
        why,
    }
}

/// For `map_err`: an [`Error::Checkpoint`] names this file.
pub(super) fn in_file(path: &Path) -> impl FnOnce(Error) -> Error {
    move |e| match e {
        Error::Checkpoint { name, why, .. } => refuse(path, &name, why),
        e => e,
    }
}

/// Over the metadata and, in the names' order, each tensor's name, type, shape and elements.
fn checksum(json: &str, tensors: &Named) -> Result<u32> {
    let mut crc = Crc::new();
    crc.update(json.as_bytes());
    let mut sorted: Vec<_> = tensors.iter().collect();
    sorted.sort_by_key(|(name, _)| name);
    for (name, t) in sorted {
        crc.update(format!("{name} {} {:?}", t.dtype(), t.shape()).as_bytes());
        let packed = t.packed()?;
        crc.update(bytes(&packed)?);
    }
    Ok(crc.sum())
}

/// The elements of a row-major tensor; safetensors is little-endian, as are the machines here.
fn bytes(t: &Tensor) -> Result<&[u8]> {
    with_element!(t.dtype(), T => Ok(bytemuck::cast_slice(t.dense_slice::<T>("save")?)))
}

fn write(path: &Path, tensors: &Named, (key, value): (&str, String)) -> Result<()> {
    let mut names = HashSet::new();
    if let Some((name, _)) = tensors.iter().find(|(name, _)| !names.insert(name)) {
        return Err(refuse(path, name, "names two tensors".into()));
    }
    let packed = tensors
        .iter()
        .map(|(_, t)| t.moved(Device::Cpu)?.packed())
        .collect::<Result<Vec<_>>>()?;
    let mut views = Vec::with_capacity(packed.len());
    for ((name, _), t) in tensors.iter().zip(&packed) {
        let dtype = match t.dtype() {
            DType::F32 => Dtype::F32,
            DType::F64 => Dtype::F64,
            DType::BF16 => Dtype::BF16,
            DType::F16 => Dtype::F16,
            DType::I64 => Dtype::I64,
            DType::U8 => Dtype::U8,
        };
        let view = TensorView::new(dtype, t.shape().to_vec(), bytes(t)?)
            .map_err(|e| refuse(path, name, e.to_string()))?;
        views.push((name, view));
    }
    let metadata = HashMap::from([(key.to_string(), value)]);
    let file = safetensors::serialize(views, Some(metadata))
        .map_err(|e| refuse(path, "header", e.to_string()))?;
    write_atomic(path, |w| w.write_all(&file))
}

/// The tensors of a safetensors file, and its metadata.
pub fn read(path: &Path) -> Result<(Named, HashMap<String, String>)> {
    let file = std::fs::read(path).map_err(Error::io(path))?;
    let header = |e| damage(path, &file, e);
    let parsed = SafeTensors::deserialize(&file).map_err(header)?;
    let (_, metadata): (usize, Metadata) = SafeTensors::read_metadata(&file).map_err(header)?;
    let mut tensors = Named::new();
    for (name, view) in parsed.iter() {
        let shape = view.shape();
        let tensor = match view.dtype() {
            Dtype::F32 => elements::<f32>(&view),
            Dtype::F64 => elements::<f64>(&view),
            Dtype::BF16 => elements::<half::bf16>(&view),
            Dtype::F16 => elements::<half::f16>(&view),
            Dtype::I64 => elements::<i64>(&view),
            Dtype::U8 => elements::<u8>(&view),
            other => {
                let why = format!("is {other:?}; expected F32, F64, BF16, F16, I64 or U8");
                return Err(refuse(path, name, why));
            }
        };
        let tensor = tensor.map_err(|e| refuse(path, name, format!("shape {shape:?}: {e}")))?;
        tensors.push((name.to_string(), tensor));
    }
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    Ok((tensors, metadata.metadata().clone().unwrap_or_default()))
}

/// What is wrong with a file that safetensors refused, with the numbers that it leaves out.
fn damage(path: &Path, file: &[u8], e: SafeTensorError) -> Error {
    let whole = file.len();
    let length = file.first_chunk().map_or(0, |n| u64::from_le_bytes(*n));
    let header = usize::try_from(length).ok();
    let header = header.and_then(|n| file.get(8..)?.get(..n)).unwrap_or(&[]);
    let entries: BTreeMap<String, serde_json::Value> =
        serde_json::from_slice(header).unwrap_or_default();
    let infos: BTreeMap<String, TensorInfo> = entries
        .into_iter()
        .filter_map(|(name, entry)| Some((name, serde_json::from_value(entry).ok()?)))
        .collect();
    let size = |i: &TensorInfo| {
        let shape = i.shape.iter().map(|&n| n as u128);
        shape
            .fold(1, u128::saturating_mul)
            .saturating_mul(i.dtype.bitsize() as u128)
            / 8
    };
    match &e {
        SafeTensorError::HeaderTooSmall
        | SafeTensorError::HeaderTooLarge
        | SafeTensorError::InvalidHeaderLength => {
            let why = format!("{e}: {length} bytes, in a file of {whole}");
            refuse(path, "header", why)
        }
        SafeTensorError::MetadataIncompleteBuffer => {
            let end = infos.values().map(|i| i.data_offsets.1).max().unwrap_or(0);
            let expected = end as u128 + length as u128 + 8;
            let why = format!("the tensors end at byte {expected}, the file at {whole}");
            refuse(path, "header", why)
        }
        SafeTensorError::InvalidOffset(name) => {
            let at = infos.get(name).map_or((0, 0), |i| i.data_offsets);
            let why = format!("lies at {at:?}; expected it to begin where the one before ends");
            refuse(path, name, why)
        }
        SafeTensorError::TensorInvalidInfo | SafeTensorError::ValidationOverflow => {
            let stored = |i: &TensorInfo| i.data_offsets.1.saturating_sub(i.data_offsets.0) as u128;
            match infos.iter().find(|(_, i)| stored(i) != size(i)) {
                Some((name, i)) => {
                    let (bytes, (shape, dtype)) = (stored(i), (&i.shape, i.dtype));
                    let why = format!("{bytes} bytes are not {shape:?} of {dtype:?}");
                    refuse(path, name, why)
                }
                None => refuse(path, "header", e.to_string()),
            }
        }
        _ => refuse(path, "header", e.to_string()),
    }
}

fn elements<T: Element + Pod>(view: &TensorView<'_>) -> Result<Tensor> {
    // collected, since an element may lie anywhere in the file
    Tensor::from_vec(
        bytemuck::pod_collect_to_vec::<u8, T>(view.data()),
        view.shape(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Mode, Visitor};

    /// One tensor of each kind.
    struct Every {
        weight: Tensor,
        mean: Tensor,
        count: Tensor,
        noise: Generator,
    }

    impl Every {
        fn new(seed: u64) -> Self {
            let mut noise = Generator::new(seed);
            Every {
                weight: Tensor::randn([3, 2], &mut noise, DType::F32)
                    .unwrap()
                    .requires_grad(),
                mean: Tensor::randn([5], &mut noise, DType::F64).unwrap(),
                count: Tensor::scalar(seed as i64).unwrap(),
                noise,
            }
        }
    }

    impl Module for Every {
        fn forward(&mut self, x: &Tensor, _: Mode) -> Result<Tensor> {
            Ok(x.clone())
        }
        fn visit(&mut self, v: &mut Visitor<'_>) {
            v.parameter("weight", &mut self.weight);
            v.buffer("running.mean", &mut self.mean);
            v.buffer("count", &mut self.count);
            v.generator("noise", &mut self.noise);
        }
        fn describe(&self) -> String {
            "Every()".into()
        }
    }

    fn checkpoint(seed: u64) -> Checkpoint {
        let mut m = Every::new(seed);
        let mut history = History::new(serde_json::json!({"lr": 0.1}), "cpu");
        history.loss_history = vec![0.1 + 0.2, 1.0 / 3.0, 5e-324, 123456.789e-7];
        Checkpoint {
            model: nn::state_dict(&mut m),
            optimizer: vec![("step.weight".into(), Tensor::scalar(7i64).unwrap())],
            best: nn::state_dict(&mut m),
            run: Run {
                model: m.describe(),
                data: "none".into(),
                settings: serde_json::json!({"seed": u64::MAX, "reg": 0.1}),
                batch: 3,
                correct: 4,
                seconds: 0.5,
                schedule: ScheduleState::default(),
                generators: generators(&mut m),
                scaler: None,
                history,
            },
        }
    }

    fn same(a: &Named, b: &Named) {
        let sorted = |n: &Named| {
            let mut all: Vec<_> = n
                .iter()
                .map(|(n, t)| {
                    (
                        n.clone(),
                        t.dtype(),
                        bytes(&t.packed().unwrap()).unwrap().to_vec(),
                    )
                })
                .collect();
            all.sort_by(|a, b| a.0.cmp(&b.0));
            all
        };
        assert_eq!(sorted(a), sorted(b));
    }

    #[test]
    fn a_state_dict_goes_there_and_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("best.safetensors");
        let (mut a, mut b) = (Every::new(1), Every::new(2));
        save_state_dict(&path, &mut a).unwrap();
        load_state_dict_file(&path, &mut b).unwrap();
        same(&nn::state_dict(&mut a), &nn::state_dict(&mut b));
        assert!(b.weight.is_tracked());
        assert_eq!(read(&path).unwrap().1["format"], "pt");

        // nothing to resume from
        let e = Checkpoint::load(&path).err().unwrap().to_string();
        assert!(e.contains("not a checkpoint of a run"), "{e}");
        // of another model: names the file and the entry, and changes nothing
        a.weight = Tensor::zeros([4, 2], DType::F32).unwrap();
        let before = nn::state_dict(&mut a);
        let e = load_state_dict_file(&path, &mut a).unwrap_err();
        assert!(
            matches!(&e, Error::Checkpoint { path: p, name, .. } if *p == path && name == "weight"),
            "{e}"
        );
        same(&before, &nn::state_dict(&mut a));
    }

    #[test]
    fn a_checkpoint_goes_there_and_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("checkpoint.safetensors");
        let (a, again) = (checkpoint(5), dir.path().join("again"));
        a.save(&path).unwrap();
        let b = Checkpoint::load(&path).unwrap();
        same(&a.model, &b.model);
        same(&a.optimizer, &b.optimizer);
        same(&a.best, &b.best);
        assert_eq!(a.run.generators, b.run.generators);
        assert_eq!(a.run.settings, b.run.settings);
        let bits = |h: &History| {
            h.loss_history
                .iter()
                .map(|x| x.to_bits())
                .collect::<Vec<_>>()
        };
        assert_eq!(bits(&a.run.history), bits(&b.run.history));
        b.save(&again).unwrap();
        assert_eq!(
            std::fs::read(&path).unwrap(),
            std::fs::read(&again).unwrap()
        );
    }

    #[test]
    fn every_damage_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("checkpoint.safetensors");
        checkpoint(5).save(&path).unwrap();
        let whole = std::fs::read(&path).unwrap();
        let check = |file: &[u8], what: &str| {
            std::fs::write(&path, file).unwrap();
            let e = Checkpoint::load(&path).err();
            assert!(
                matches!(&e, Some(Error::Checkpoint { path: p, .. }) if *p == path),
                "{what}: {e:?}"
            );
        };
        for length in [0, 1, 7, 8, 9, 100, whole.len() / 2, whole.len() - 1] {
            check(&whole[..length], &format!("cut to {length}"));
        }
        for at in 0..whole.len() {
            let mut file = whole.clone();
            file[at] ^= 1;
            check(&file, &format!("byte {at}"));
        }
        check(&[&whole[..], b"more"].concat(), "longer");
    }

    #[test]
    fn another_version_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("checkpoint.safetensors");
        write(&path, &Named::new(), (KEY, "2 00000000 {}".into())).unwrap();
        let e = Checkpoint::load(&path).err().unwrap().to_string();
        assert!(
            e.ends_with("version: is \"2\"; this program reads version 1"),
            "{e}"
        );
    }
}
