//! Activations and gradients layer by layer: where they die, blow up or stop being numbers.

use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use crate::autograd::{Gradients, autocast, lock};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::nn::{self, Mode, Module, Summary};
use crate::tensor::Tensor;
use crate::train::judge::in_order;
use crate::train::l2::add_l2_gradients;
use crate::train::observer::{Kept, Observer};
use crate::train::{LossFn, Outcome, Plot, Run, Series, StepView, files};

/// What is to be said of some numbers. All but the counts are of those that are finite.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Moments {
    /// How many there are.
    pub count: usize,
    /// The mean; 0 of none.
    pub mean: f64,
    /// The root of the mean squared distance from the mean (divided by the count, not by one less).
    pub std: f64,
    /// The root of the sum of the squares.
    pub norm: f64,
    /// The share that is 0: after a ReLU, of units that do not fire.
    pub zeros: f64,
    /// The least; 0 of none.
    pub min: f64,
    /// The greatest; 0 of none.
    pub max: f64,
    /// How many are NaN.
    pub nan: usize,
    /// How many are infinite.
    pub inf: usize,
}

impl Moments {
    /// Of the elements of a tensor of floats.
    ///
    /// ```
    /// # use cotangent::{Tensor, train::Moments};
    /// let m = Moments::of(&Tensor::from_slice(&[0f32, 2.0, f32::NAN, 4.0, -f32::INFINITY], [5])?)?;
    /// assert_eq!((m.count, m.nan, m.inf), (5, 1, 1));
    /// assert_eq!((m.mean, m.min, m.max, m.zeros), (2.0, 0.0, 4.0, 1.0 / 3.0));
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn of(t: &Tensor) -> Result<Self> {
        Ok(Self::of_values(&t.cast(DType::F64)?.to_vec::<f64>()?))
    }

    fn of_values(values: &[f64]) -> Self {
        let finite = || values.iter().copied().filter(|v| v.is_finite());
        let nan = values.iter().filter(|v| v.is_nan()).count();
        let inf = values.iter().filter(|v| v.is_infinite()).count();
        let n = (values.len() - nan - inf).max(1) as f64;
        let mean = finite().sum::<f64>() / n;
        Moments {
            count: values.len(),
            mean,
            std: (finite().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt(),
            norm: finite().map(|v| v * v).sum::<f64>().sqrt(),
            zeros: finite().filter(|v| *v == 0.0).count() as f64 / n,
            min: finite().reduce(f64::min).unwrap_or(0.0),
            max: finite().reduce(f64::max).unwrap_or(0.0),
            nan,
            inf,
        }
    }

    /// The columns of a CSV file.
    const COLUMNS: [&str; 8] = ["mean", "std", "norm", "zeros", "min", "max", "nan", "inf"];

    fn columns(&self) -> [f64; 8] {
        let (nan, inf) = (self.nan as f64, self.inf as f64);
        let Moments {
            mean, std, norm, ..
        } = *self;
        [mean, std, norm, self.zeros, self.min, self.max, nan, inf]
    }
}

/// One layer, a row of [`Summary`].
#[derive(Clone, Debug, PartialEq)]
pub struct LayerStatistics {
    /// The dotted name within the network, as in its state dict.
    pub name: String,
    /// As PyTorch prints the layer.
    pub layer: String,
    /// What comes out of it.
    pub activation: Moments,
    /// The loss's gradient with respect to that; `None` where it does not reach.
    pub gradient: Option<Moments>,
    /// Its weights: the parameters that decay ([`nn::is_decayed`]), or where there are none all
    /// others, such as a norm's; `None` of a layer without parameters.
    pub weight: Option<Moments>,
    /// The loss's gradient, the L2 penalty's with it, with respect to them.
    pub weight_gradient: Option<Moments>,
}

impl LayerStatistics {
    /// The norm of the weights' gradient over that of the weights: with plain SGD the learning rate
    /// times it is the share of themselves by which a step moves them. `None` without either, or
    /// with weights of 0.
    pub fn ratio(&self) -> Option<f64> {
        let (w, g) = (self.weight?, self.weight_gradient?);
        (w.norm > 0.0).then(|| g.norm / w.norm)
    }
}

/// All layers of a network at one batch, in the order in which they run; displays as a table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Statistics {
    /// The loss, without the L2 penalty.
    pub loss: f64,
    /// A row a layer.
    pub layers: Vec<LayerStatistics>,
}

impl Statistics {
    /// Run `model` forward and backward once in training mode on images (N, C, H, W) and labels
    /// (N), with products in `autocast`'s type where one is given. The L2 penalty 0.5 reg sum(W²)
    /// counts in the weights' gradients. The model comes back as it was, running statistics and
    /// random streams among it, whether it fails or not.
    ///
    /// ```
    /// # use cotangent::{DType, Tensor, random::Generator};
    /// # use cotangent::nn::{Activation, Linear, Sequential};
    /// # use cotangent::train::{Statistics, softmax_loss};
    /// let linear = Linear::new(3, 2, true, &mut Generator::new(0))?;
    /// let mut net = Sequential::new().push(linear).push(Activation::Relu);
    /// let (x, labels) = (Tensor::ones([4, 3], DType::F32)?, Tensor::zeros([4], DType::I64)?);
    /// let found = Statistics::of(&mut net, &x, &labels, &softmax_loss(0.0), 0.0, None)?;
    /// assert_eq!((found.layers[0].name.as_str(), found.layers[0].activation.count), ("0", 8));
    /// assert!(found.layers[0].ratio() > Some(0.0) && found.layers[1].weight.is_none());
    /// # Ok::<(), cotangent::Error>(())
    /// ```
    pub fn of(
        model: &mut dyn Module,
        images: &Tensor,
        labels: &Tensor,
        loss: &LossFn,
        reg: f64,
        products: Option<DType>,
    ) -> Result<Self> {
        let kept = Kept::of(model);
        let found = layers(model, (images, labels), loss, reg, products);
        kept.put_back(model);
        found
    }

    /// Of a run's network at the first training images, a batch of them, without augmentation.
    pub fn of_run(run: &mut Run) -> Result<Self> {
        First::of(run)?.look(&mut *run.model)
    }
}

fn layers(
    model: &mut dyn Module,
    (images, labels): (&Tensor, &Tensor),
    loss: &LossFn,
    reg: f64,
    products: Option<DType>,
) -> Result<Statistics> {
    let (loss, summary) = {
        let _products = autocast(products)?;
        let (mut scores, summary) = Summary::traced(model, images, Mode::Train)?;
        if products == Some(scores.dtype()) {
            scores = scores.cast(DType::F32)?;
        }
        (loss(&scores, labels)?, summary)
    };
    let mut found = Vec::with_capacity(summary.rows.len());
    for (row, output) in summary.rows.iter().zip(summary.outputs()) {
        let gradient: Arc<Mutex<Option<Moments>>> = Arc::default();
        let place = gradient.clone();
        output.register_hook(move |g| {
            *lock(&place) = Some(Moments::of(g)?);
            Ok(None)
        });
        found.push((row, Moments::of(output)?, gradient));
    }
    let mut grads = match loss.is_tracked() {
        true => loss.backward()?,
        // all is frozen
        false => Gradients::default(),
    };
    add_l2_gradients(model, reg, &mut grads)?;
    let parameters = nn::named_parameters(model);
    let layers = found.into_iter().map(|(row, activation, gradient)| {
        let prefix = match row.name.is_empty() {
            true => String::new(),
            false => format!("{}.", row.name),
        };
        // a layer scale is its block's own parameter, and has its name
        let is_own = |name: &str| name.starts_with(&prefix) || name == row.name;
        let own = parameters.iter().filter(|(name, _)| is_own(name));
        let own: Vec<_> = own.filter(|_| row.parameters > 0).collect();
        let decays = own.iter().any(|(name, p)| nn::is_decayed(name, p));
        let weights = own.iter().filter(|(n, p)| nn::is_decayed(n, p) == decays);
        let weights: Vec<&Tensor> = weights.map(|(_, p)| p).collect();
        let gradients = weights.iter().filter_map(|w| grads.get(w)).collect();
        let gradient = *lock(&gradient);
        Ok(LayerStatistics {
            name: row.name.clone(),
            layer: row.layer.clone(),
            activation,
            gradient,
            weight_gradient: together(gradients)?,
            weight: together(weights)?,
        })
    });
    Ok(Statistics {
        layers: layers.collect::<Result<_>>()?,
        loss: loss.item()?,
    })
}

/// The moments of several tensors' elements; `None` of no tensor.
fn together(tensors: Vec<&Tensor>) -> Result<Option<Moments>> {
    let mut values = Vec::new();
    for t in &tensors {
        values.extend(t.cast(DType::F64)?.to_vec::<f64>()?);
    }
    Ok((!tensors.is_empty()).then(|| Moments::of_values(&values)))
}

impl fmt::Display for Statistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.layers.iter().map(|l| l.name.chars().count());
        let width = names.max().unwrap_or(0).max(5);
        writeln!(
            f,
            "{:width$} {:>10} {:>9} {:>7} {:>10} {:>10} | {:>9} {:>9} {:>9} | {:>9} {:>9} {:>9} {:>9} | {:>7}",
            "layer",
            "mean",
            "std",
            "zeros",
            "min",
            "max", // of the activations
            "d mean",
            "d std",
            "d norm", // of their gradients
            "dW mean",
            "dW std",
            "dW norm",
            "dW/W",
            "nan,inf"
        )?;
        for l in &self.layers {
            let a = &l.activation;
            write!(
                f,
                "{:width$} {:>10.3e} {:>9.2e} {:>5.1} % {:>10.3e} {:>10.3e} |",
                l.name,
                a.mean,
                a.std,
                100.0 * a.zeros,
                a.min,
                a.max
            )?;
            let cell = |x: Option<f64>| x.map_or("-".into(), |x| format!("{x:.2e}"));
            let three =
                |m: Option<Moments>| [m.map(|m| m.mean), m.map(|m| m.std), m.map(|m| m.norm)];
            for x in three(l.gradient) {
                write!(f, " {:>9}", cell(x))?;
            }
            write!(f, " |")?;
            for x in three(l.weight_gradient).into_iter().chain([l.ratio()]) {
                write!(f, " {:>9}", cell(x))?;
            }
            let all = [Some(l.activation), l.gradient, l.weight_gradient];
            let count = |of: fn(&Moments) -> usize| all.iter().flatten().map(of).sum::<usize>();
            let (nan, inf) = (count(|m| m.nan), count(|m| m.inf));
            writeln!(f, " | {:>7}", format!("{nan},{inf}"))?;
        }
        write!(f, "loss {:.4}", self.loss)
    }
}

/// The batch that is looked at, and how.
struct First {
    images: Tensor,
    labels: Tensor,
    loss: LossFn,
    reg: f64,
    products: Option<DType>,
}

impl First {
    fn of(run: &mut Run) -> Result<Self> {
        let recipe = &run.recipe;
        let config = &recipe.train;
        let train = &run.splits.train;
        let device = nn::device(&mut *run.model);
        let preparation = (&run.normalize, &recipe.evaluation[..]);
        let loader = in_order(train, preparation, config.batch_size)?;
        let first = loader.epoch_on(device, 0, 0).next();
        let none = || Err(Error::config("train_samples", "no training images"));
        let (images, labels) = first.unwrap_or_else(none)?.tensors()?;
        Ok(First {
            images,
            labels,
            loss: config.loss.build(config.label_smoothing)?,
            reg: config.reg + run.model.reg(),
            products: config.autocast.dtype(),
        })
    }

    fn look(&self, model: &mut dyn Module) -> Result<Statistics> {
        let (images, labels) = (&self.images, &self.labels);
        Statistics::of(model, images, labels, &self.loss, self.reg, self.products)
    }
}

/// The statistics of a run at several times.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Diary {
    /// After so many epochs, 0 at initialization.
    pub entries: Vec<(usize, Statistics)>,
}

impl Diary {
    /// Of a run as it is, after so many epochs.
    pub fn of_run(run: &mut Run, epoch: usize) -> Result<Self> {
        Ok(Diary {
            entries: vec![(epoch, Statistics::of_run(run)?)],
        })
    }

    /// Train as [`Run::train`] does, in `dir`, with an entry before the first step and one after
    /// each epoch, always of the same images. Each is shown to `see`, and all are saved in `dir` so
    /// far.
    pub fn of_training(
        run: &mut Run,
        dir: impl AsRef<Path>,
        stop: Arc<AtomicBool>,
        see: impl FnMut(usize, &Statistics),
    ) -> Result<(Outcome, Self)> {
        let mut writer = Writer {
            dir: dir.as_ref().to_path_buf(),
            first: First::of(run)?,
            diary: Diary::default(),
            see,
        };
        let (outcome, _) = run.train_observed(dir, false, stop, Some(&mut writer))?;
        Ok((outcome, writer.diary))
    }

    /// Write `statistics.csv`, a line a layer and entry, and `statistics.svg` and `.png`, the
    /// deviation of the activations and the norm of their gradients by the layer's number, of the
    /// first and the last entry, into a folder.
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<()> {
        let dir = dir.as_ref();
        files::create_dir(dir)?;
        files::write_atomic(dir.join("statistics.csv"), |w| self.write_csv(w))?;
        let ends = match &self.entries[..] {
            [] => Vec::new(),
            [one] => vec![one],
            [first, .., last] => vec![first, last],
        };
        let mut series = Vec::new();
        for (epoch, found) in ends {
            // the logarithm of 0 is not drawn
            let curve = |of: fn(&LayerStatistics) -> Option<f64>| {
                let values = (1..).zip(&found.layers);
                let points = values.map(|(i, l)| (i as f64, of(l).map_or(f64::NAN, f64::log10)));
                points.collect()
            };
            series.push(Series::markers(
                format!("activations: std, epoch {epoch}"),
                curve(|l| Some(l.activation.std)),
            ));
            series.push(Series::markers(
                format!("gradients: norm, epoch {epoch}"),
                curve(|l| l.gradient.map(|g| g.norm)),
            ));
        }
        let plot = Plot {
            title: "Activations and their gradients",
            x_label: "layer",
            y_label: "log10",
            series: &series,
        };
        plot.save(dir, "statistics")
    }

    fn write_csv(&self, w: &mut dyn Write) -> std::io::Result<()> {
        write!(w, "epoch,loss,name,layer")?;
        for part in PARTS {
            for column in Moments::COLUMNS {
                write!(w, ",{part}_{column}")?;
            }
        }
        writeln!(w, ",weight_gradient_over_weight")?;
        for (epoch, found) in &self.entries {
            for l in &found.layers {
                let (name, layer) = (files::csv_field(&l.name), files::csv_field(&l.layer));
                write!(w, "{epoch},{},{name},{layer}", found.loss)?;
                for part in [Some(l.activation), l.gradient, l.weight, l.weight_gradient] {
                    match part {
                        Some(moments) => {
                            let mut columns = moments.columns().into_iter();
                            columns.try_for_each(|x| write!(w, ",{x}"))?;
                        }
                        None => write!(w, "{}", ",".repeat(Moments::COLUMNS.len()))?,
                    }
                }
                let ratio = l.ratio().map_or(String::new(), |x| x.to_string());
                writeln!(w, ",{ratio}")?;
            }
        }
        Ok(())
    }
}

/// What the columns of a CSV file are of.
const PARTS: [&str; 4] = ["activation", "gradient", "weight", "weight_gradient"];

/// Writes a diary while a run goes on.
struct Writer<F> {
    dir: PathBuf,
    first: First,
    diary: Diary,
    see: F,
}

impl<F: FnMut(usize, &Statistics)> Observer for Writer<F> {
    fn watches(&self, step: usize) -> bool {
        step == 0
    }

    fn before_step(&mut self, at: StepView<'_>) -> Result<()> {
        self.after_epoch(0, at.model)
    }

    fn after_epoch(&mut self, epoch: usize, model: &mut dyn Module) -> Result<()> {
        let found = self.first.look(model)?;
        (self.see)(epoch, &found);
        self.diary.entries.push((epoch, found));
        self.diary.save(&self.dir)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::build_with;
    use crate::nn::{Activation, Dropout, Linear, Sequential};
    use crate::random::Generator;
    use crate::train::{Recipe, checkpoint, softmax_loss};

    fn linear(rows: &[f32], inputs: usize) -> Result<Linear> {
        let outputs = rows.len() / inputs;
        let mut linear = Linear::new(inputs, outputs, false, &mut Generator::new(0))?;
        linear.weight = Tensor::from_slice(rows, [outputs, inputs])?.requires_grad();
        Ok(linear)
    }

    #[test]
    fn two_linear_layers_by_hand() -> Result<()> {
        let first = linear(&[1.0, 0.0, 0.0, -1.0], 2)?;
        let second = linear(&[2.0, 0.0], 2)?;
        let mut net = Sequential::new().push(first).named("last", second)?;
        let x = Tensor::from_slice(&[1f32, 2.0, 3.0, -1.0], [2, 2])?;
        let loss: LossFn = Arc::new(|y, _| y.sum_all());
        let found = Statistics::of(&mut net, &x, &x, &loss, 0.0, None)?;
        // h = [[1, -2], [3, 1]], y = [[2], [6]]; dh = [[2, 0], [2, 0]]
        assert_eq!(found.loss, 8.0);
        let [a, b] = &found.layers[..] else { panic!() };
        assert_eq!((a.name.as_str(), b.name.as_str()), ("0", "last"));
        assert_eq!(
            (a.activation.mean, a.activation.std),
            (0.75, 3.1875f64.sqrt())
        );
        assert_eq!((a.activation.min, a.activation.max), (-2.0, 3.0));
        let g = a.gradient.unwrap();
        assert_eq!(
            (g.mean, g.std, g.norm, g.zeros),
            (1.0, 1.0, 8f64.sqrt(), 0.5)
        );
        // dW1 = [[8, 2], [0, 0]], dW2 = [4, -1]
        let w = a.weight_gradient.unwrap();
        assert_eq!((w.mean, w.norm, w.zeros), (2.5, 68f64.sqrt(), 0.5));
        assert_eq!(a.ratio(), Some(68f64.sqrt() / 2f64.sqrt()));
        assert_eq!((b.activation.mean, b.activation.std), (4.0, 2.0));
        assert_eq!(b.gradient.unwrap().norm, 2f64.sqrt());
        assert_eq!(b.weight_gradient.unwrap().norm, 17f64.sqrt());
        assert_eq!(b.ratio(), Some(17f64.sqrt() / 2.0));
        // with the penalty 0.5 reg W^2, dW2 is [4 + 2 reg, -1]
        let found = Statistics::of(&mut net, &x, &x, &loss, 0.5, None)?;
        assert_eq!(
            (found.loss, found.layers[1].weight_gradient.unwrap().max),
            (8.0, 5.0)
        );
        // frozen: no gradient anywhere, and no error
        nn::set_requires_grad(&mut net, false, |_| true);
        let found = Statistics::of(&mut net, &x, &x, &loss, 0.0, None)?;
        assert!(
            found
                .layers
                .iter()
                .all(|l| l.gradient.is_none() && l.ratio().is_none())
        );
        assert!(found.to_string().contains("last "), "{found}");
        Ok(())
    }

    #[test]
    fn units_that_are_dead_and_numbers_that_are_none() -> Result<()> {
        let first = linear(&[1.0, -1.0, f32::INFINITY], 1)?;
        let mut net = Sequential::new().push(first).push(Activation::Relu);
        let x = Tensor::from_slice(&[1f32, 0.0], [2, 1])?;
        let loss: LossFn = Arc::new(|y, _| y.sum_all());
        let found = Statistics::of(&mut net, &x, &x, &loss, 0.0, None)?;
        // [1, -1, inf] and [0, 0, nan], -0 among them
        let before = found.layers[0].activation;
        assert_eq!((before.inf, before.nan, before.zeros), (1, 1, 0.5));
        let after = found.layers[1].activation;
        assert_eq!((after.zeros, after.max, after.inf), (0.75, 1.0, 1));
        assert!(
            found.to_string().lines().nth(1).unwrap().ends_with("1,1"),
            "{found}"
        );
        Ok(())
    }

    #[test]
    fn layers_of_every_kind_of_network_are_seen_as_they_train() -> Result<()> {
        let x = Tensor::randn([3, 3, 8, 8], &mut Generator::new(1), DType::F32)?;
        let labels = Tensor::from_slice(&[1i64, 0, 2], [3])?;
        for (name, settings) in [
            ("two_layer", serde_json::json!({"hidden_dim": 3})),
            (
                "vgg_a_bn",
                serde_json::json!({"stages": [[2], [3]], "hidden_dims": [4]}),
            ),
            (
                "resnet18",
                serde_json::json!({"depths": [1, 1], "width": 2}),
            ),
            ("res9", serde_json::json!({})),
            (
                "convnext_small",
                serde_json::json!({"depths": [1, 1], "dims": [2, 4], "drop_path": 0.5}),
            ),
        ] {
            let settings = settings.as_object().unwrap();
            let mut net = build_with(name, settings, [3, 8, 8], 3, 0)?;
            let state = |net: &mut dyn Module| -> Result<Vec<Vec<f32>>> {
                let all = nn::state_dict(net).into_iter();
                all.map(|(_, t)| t.cast(DType::F32)?.to_vec()).collect()
            };
            let (before, streams) = (state(&mut *net)?, checkpoint::generators(&mut *net));
            let loss = softmax_loss(0.0);
            let found = Statistics::of(&mut *net, &x, &labels, &loss, 0.0, None)?;
            assert_eq!(state(&mut *net)?, before, "{name}");
            assert_eq!(checkpoint::generators(&mut *net), streams, "{name}");
            let own = loss(&net.forward(&x, Mode::Train)?, &labels)?.item()?;
            assert!(
                (found.loss - own).abs() < 1e-4 * own,
                "{name}: {} {own}",
                found.loss
            );
            let summary = Summary::of(&mut *net, &x)?;
            assert_eq!(summary.rows.len(), found.layers.len());
            for (row, layer) in summary.rows.iter().zip(&found.layers) {
                let has = row.parameters > 0;
                assert_eq!(layer.weight.is_some(), has, "{name} {}", row.name);
                assert_eq!(layer.weight_gradient.is_some(), has, "{name} {}", row.name);
                assert!(layer.weight.is_none_or(|w| w.count <= row.parameters));
                assert_eq!(layer.activation.count, row.output.iter().product::<usize>());
            }
        }
        Ok(())
    }

    #[test]
    fn random_streams_come_back_after_an_error_too() -> Result<()> {
        let rng = &mut Generator::new(0);
        let mut net = Sequential::new()
            .push(Dropout::new(0.5, rng)?)
            .push(linear(&[1.0; 4], 2)?);
        let x = Tensor::ones([2, 2], DType::F32)?;
        let streams = checkpoint::generators(&mut net);
        let loss: LossFn = Arc::new(|_, _| Err(Error::argument("loss", "none")));
        assert!(Statistics::of(&mut net, &x, &x, &loss, 0.0, None).is_err());
        assert_eq!(checkpoint::generators(&mut net), streams);
        Ok(())
    }

    #[test]
    fn a_diary_is_kept_while_a_run_goes_as_it_would() -> Result<()> {
        let text = "[data]\nname = \"embedded\"\ntrain_samples = 30\ntest_samples = 10\n\
            [model]\nname = \"two_layer\"\nhidden_dim = 3\n\
            [train]\nnum_epochs = 2\nbatch_size = 15\nverbose = false\nnum_val_samples = 10";
        let run = || Run::new(Recipe::parse(text, &[])?);
        let dir = tempfile::tempdir().unwrap();
        let (plain, watched) = (dir.path().join("plain"), dir.path().join("watched"));
        let (_, want) = run()?.train(&plain, false, Arc::default())?;
        let mut seen = Vec::new();
        let see = |epoch, found: &Statistics| seen.push((epoch, found.loss));
        let mut watching = run()?;
        let (outcome, diary) = Diary::of_training(&mut watching, &watched, Arc::default(), see)?;
        assert_eq!(outcome, Outcome::Finished);
        let entries: Vec<(usize, f64)> = diary.entries.iter().map(|(e, s)| (*e, s.loss)).collect();
        assert_eq!(entries, seen);
        assert_eq!(seen.iter().map(|e| e.0).collect::<Vec<_>>(), [0, 1, 2]);
        let got = crate::train::History::load(&watched)?;
        assert_eq!(
            (got.loss_history, got.test_acc),
            (want.loss_history, want.test_acc)
        );
        // the first entry is that of a run that has not begun
        assert_eq!(Diary::of_run(&mut run()?, 0)?.entries[0], diary.entries[0]);
        let read = |name| std::fs::read_to_string(watched.join(name)).unwrap();
        let csv = read("statistics.csv");
        let layers = diary.entries[0].1.layers.len();
        assert_eq!(csv.lines().count(), 1 + 3 * layers);
        let columns = |line: &str| line.replace(", ", " ").split(',').count();
        let head = columns(csv.lines().next().unwrap());
        assert!(csv.lines().all(|l| columns(l) == head), "{csv}");
        let svg = read("statistics.svg");
        assert!(svg.contains("activations: std, epoch 2") && !svg.contains("epoch 1"));
        // a run is not written over, and what is there stays
        let e = Diary::of_training(&mut run()?, &watched, Arc::default(), |_, _| ());
        assert!(e.unwrap_err().to_string().contains("holds a run"));
        assert_eq!(read("statistics.csv"), csv);
        Ok(())
    }
}
