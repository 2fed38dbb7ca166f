//! A run as one page: `report.html`, which needs nothing beside it and no network.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::data::Dataset;
use crate::error::{Error, Result};
use crate::train::picture::png_bytes;
use crate::train::{Confusion, History, Judged, Run, files, save_curves};

/// The page in a run's folder.
pub const REPORT: &str = "report.html";

/// Images that are shown of a class.
const PICTURES: usize = 8;
/// Classes up to which the whole confusion matrix is a table; of more it is a picture.
const MOST_CLASSES: usize = 40;
/// Pixels that a side of the picture has at least.
const SIDE: usize = 800;

/// Of right and of wrong answers: as in the style below, and told apart by the colour-blind.
const GOOD: [u8; 3] = [0, 158, 115];
const BAD: [u8; 3] = [213, 94, 0];

const STYLE: &str = "
:root { color-scheme: light; --ink: #282828; --line: #e4e4e4; --good: #009e73; --bad: #d55e00; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; } th, td { padding: .25rem .6rem; text-align: right; }
th:first-child, td:first-child { text-align: left; }
.curves svg { width: 100%; height: auto; } .curves { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; }
.scroll { overflow-x: auto; } .matrix td { min-width: 2.2rem; } .matrix th { font-weight: normal; }
img.matrix { width: 100%; image-rendering: pixelated; border: 1px solid var(--line); }
.class { margin: 1rem 0; } .pictures { display: flex; flex-wrap: wrap; gap: .5rem; }
figure { margin: 0; text-align: center; font-size: .75rem; } figure img { width: 64px; height: 64px; image-rendering: pixelated; }
.right { color: var(--good); } .wrong { color: var(--bad); }
pre { background: #f6f6f6; padding: 1rem; overflow-x: auto; }
@media (max-width: 48rem) { .curves { grid-template-columns: 1fr; } }
";

/// Write `report.html` into a run's folder: figures, curves, the confusion matrix, the best and the
/// worst five classes with pictures, and every setting. `judged` is of the run's network; the history is
/// read from the folder, its curves are drawn anew, of a run that goes on too. Where it was written.
pub fn write(dir: impl AsRef<Path>, run: &Run, judged: &Judged) -> Result<PathBuf> {
    let dir = dir.as_ref();
    let history = History::load(dir)?;
    save_curves(dir, &history)?;
    let page = page(dir, run, judged, &history)?;
    let path = dir.join(REPORT);
    files::write_atomic(&path, |w| w.write_all(page.as_bytes()))?;
    Ok(path)
}

/// Text that is no markup.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            c => out.push(c),
        }
    }
    out
}

fn page(dir: &Path, run: &Run, judged: &Judged, history: &History) -> Result<String> {
    let (recipe, meters) = (&run.recipe, &judged.meters);
    let title = escape(&recipe.title());
    let percent = |x: Option<f64>| x.map_or("-".into(), |x| format!("{:.2} %", 100.0 * x));
    let mut html = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>{title}</title><style>{STYLE}</style></head><body>\n<h1>{title}</h1>\n<p>{}</p>\n",
        escape(&run.splits.to_string())
    );
    let rows = [
        ("network", escape(&recipe.model.name)),
        (
            "epochs",
            format!(
                "{}, the best was the {}.",
                history.epochs, history.best_epoch
            ),
        ),
        ("training accuracy", percent(history.train_acc)),
        ("validation accuracy", percent(Some(history.best_val_acc))),
        ("test accuracy", percent(history.test_acc)),
        (
            "training",
            format!("{:.1} s on {}", history.seconds, escape(&history.device)),
        ),
        (
            "judged by",
            format!(
                "{} of {} {} images",
                meters.images,
                meters.total,
                escape(&meters.split)
            ),
        ),
        ("loss", format!("{:.4}", meters.loss)),
        ("acc1", percent(Some(meters.acc1))),
        ("acc5", percent(Some(meters.acc5))),
        (
            "evaluation",
            format!(
                "{:.3} s a batch, {:.0} MB at most",
                meters.batch_seconds,
                meters.memory as f64 / 1e6
            ),
        ),
        (
            "seed, version",
            format!("{}, cotangent {}", recipe.seed, env!("CARGO_PKG_VERSION")),
        ),
    ];
    html += "<table>\n";
    for (name, value) in rows {
        html += &format!("<tr><th>{name}</th><td>{value}</td></tr>\n");
    }
    html += "</table>\n<h2>Curves</h2>\n<div class=\"curves\">\n";
    for name in ["loss.svg", "epoch_loss.svg", "accuracy.svg"] {
        let path = dir.join(name);
        html += &std::fs::read_to_string(&path).map_err(Error::io(&path))?;
    }
    html += "\n</div>\n<h2>Classes</h2>\n";
    matrix(&mut html, &judged.confusion)?;
    let ranked = judged.confusion.ranking();
    let five = ranked.len().min(5);
    let data = run.images(&meters.split)?;
    for (name, classes) in [
        ("Best classes", ranked[..five].to_vec()),
        (
            "Worst classes",
            ranked[ranked.len() - five..]
                .iter()
                .rev()
                .copied()
                .collect(),
        ),
    ] {
        html += &format!("<h2>{name}</h2>\n");
        for (class, recall) in classes {
            pictures(&mut html, data, judged, class, recall)?;
        }
    }
    html += &format!(
        "<h2>Recipe</h2>\n<pre>{}</pre>\n</body></html>\n",
        escape(&recipe.to_toml()?)
    );
    Ok(html)
}

/// The confusion matrix, each row's counts shaded by their share.
fn matrix(html: &mut String, confusion: &Confusion) -> Result<()> {
    let n = confusion.classes.len();
    if n > MOST_CLASSES {
        let scale = SIDE.div_ceil(n);
        let png = STANDARD.encode(png_bytes(
            &shades(confusion, scale),
            [3, n * scale, n * scale],
        )?);
        let _ = writeln!(
            html,
            "<p>A row a true class, a column a predicted one, from the top left in the order of their names: \
             the darker, the larger a share of the row. The counts are in the CSV file beside this one.</p>\n\
             <img class=\"matrix\" alt=\"confusion matrix of {n} classes\" src=\"data:image/png;base64,{png}\">"
        );
        return Ok(());
    }
    *html += "<div class=\"scroll\"><table class=\"matrix\"><tr><th>true \\ predicted</th>";
    for name in &confusion.classes {
        let _ = write!(html, "<th>{}</th>", escape(name));
    }
    *html += "<th>found</th></tr>\n";
    for (truth, row) in confusion.counts.iter().enumerate() {
        let all = row.iter().sum::<usize>().max(1) as f64;
        let _ = write!(html, "<tr><th>{}</th>", escape(&confusion.classes[truth]));
        for (predicted, &count) in row.iter().enumerate() {
            let [r, g, b] = if truth == predicted { GOOD } else { BAD };
            let share = count as f64 / all;
            let _ = write!(
                html,
                "<td style=\"background:rgba({r},{g},{b},{:.2})\">{count}</td>",
                0.8 * share
            );
        }
        let found = confusion
            .recall(truth)
            .map_or("-".into(), |r| format!("{:.1} %", 100.0 * r));
        let _ = writeln!(html, "<td>{found}</td></tr>");
    }
    *html += "</table></div>\n";
    Ok(())
}

/// The matrix as an image (3, H, W), `scale` pixels a count: white where a row has none, and by its share
/// of the row the diagonal green, the mistakes red.
fn shades(confusion: &Confusion, scale: usize) -> Vec<u8> {
    let n = confusion.classes.len();
    let side = n * scale;
    let mut image = vec![255; 3 * side * side];
    for (truth, row) in confusion.counts.iter().enumerate() {
        let all = row.iter().sum::<usize>().max(1) as f64;
        for (predicted, &count) in row.iter().enumerate() {
            let colour = if truth == predicted { GOOD } else { BAD };
            // the root: a few mistakes among many images are seen too
            let ink = (count as f64 / all).sqrt();
            for (channel, &full) in colour.iter().enumerate() {
                let value = 255.0 + ink * (f64::from(full) - 255.0);
                for y in truth * scale..(truth + 1) * scale {
                    let at = (channel * side + y) * side + predicted * scale;
                    image[at..at + scale].fill(value as u8);
                }
            }
        }
    }
    image
}

/// A class with its first images, those that are mistaken first.
fn pictures(
    html: &mut String,
    data: &Dataset,
    judged: &Judged,
    class: usize,
    recall: f64,
) -> Result<()> {
    let name = &judged.confusion.classes[class];
    let _ = write!(
        html,
        "<div class=\"class\"><strong>{}</strong> {:.1} %<div class=\"pictures\">",
        escape(name),
        100.0 * recall
    );
    let own: Vec<usize> = (0..data.len())
        .filter(|&i| data.label(i) == class)
        .collect();
    let (right, wrong): (Vec<usize>, Vec<usize>) =
        own.into_iter().partition(|&i| judged.predicted[i] == class);
    for i in wrong.into_iter().chain(right).take(PICTURES) {
        let png = STANDARD.encode(png_bytes(data.image(i), data.shape())?);
        let predicted = judged.predicted[i];
        let kind = if predicted == class { "right" } else { "wrong" };
        let _ = write!(
            html,
            "<figure><img alt=\"{}\" src=\"data:image/png;base64,{png}\"><figcaption class=\"{kind}\">{}</figcaption></figure>",
            escape(name),
            escape(&judged.confusion.classes[predicted])
        );
    }
    *html += "</div></div>\n";
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::Recipe;
    use std::sync::Arc;

    #[test]
    fn a_page_holds_all_and_needs_nothing() -> Result<()> {
        let dir = tempfile::tempdir().unwrap();
        let text = "name = \"a <b>\"\n[data]\nname = \"embedded\"\ntrain_samples = 40\n\
            test_samples = 40\n[model]\nname = \"three_layer\"\nnum_filters = 2\nhidden_dim = 4\n\
            [train]\nnum_epochs = 1\nbatch_size = 20\nverbose = false\nnum_val_samples = 20";
        let mut run = Run::new(Recipe::parse(text, &[])?)?;
        run.train(dir.path(), false, Arc::default())?;
        let judged = run.eval("test", |_| ())?;
        let path = write(dir.path(), &run, &judged)?;
        let page = std::fs::read_to_string(path).unwrap();
        for part in [
            "<h1>a &lt;b&gt;</h1>",
            "<svg",
            "Best classes",
            "Worst classes",
            "data:image/png;base64,",
            "num_filters = 2",
            "<th>true \\ predicted</th>",
        ] {
            assert!(page.contains(part), "{part}");
        }
        let network = |word: &str| page.matches(word).count();
        // the drawings' name spaces alone
        assert_eq!(network("http"), network("http://www.w3.org/"));
        assert_eq!(network("<table"), network("</table>"));
        assert_eq!(
            network("<svg"),
            3,
            "the losses of steps and of epochs, the accuracies"
        );
        // every cell of the matrix, each with its count
        let cells = page.matches("<td style=\"background:rgba(").count();
        assert_eq!(cells, 100);
        let counts: usize = judged.confusion.counts.iter().flatten().sum();
        assert_eq!(counts, 40);
        Ok(())
    }

    #[test]
    fn a_matrix_of_many_classes_is_a_picture() -> Result<()> {
        let names: Vec<String> = (0..50).map(|i| format!("class {i}")).collect();
        let mut confusion = Confusion::new(&names);
        confusion.add(0, 0)?;
        confusion.add(1, 0)?;
        let (side, scale) = (800, 16);
        let image = shades(&confusion, scale);
        let pixel = |y: usize, x: usize| [0, 1, 2].map(|c| image[(c * side + y) * side + x]);
        assert_eq!(image.len(), 3 * side * side);
        for (y, x, colour) in [
            (0, 0, GOOD),
            (15, 15, GOOD),
            (16, 0, BAD),
            (16, 16, [255; 3]),
            (0, 16, [255; 3]),
            (799, 799, [255; 3]),
        ] {
            assert_eq!(pixel(y, x), colour, "{y}, {x}");
        }
        let mut html = String::new();
        matrix(&mut html, &confusion)?;
        assert!(
            html.contains("alt=\"confusion matrix of 50 classes\"") && !html.contains("<table")
        );
        Ok(())
    }

    #[test]
    fn text_is_no_markup() {
        assert_eq!(
            escape("<a href=\"x\">&</a>"),
            "&lt;a href=&quot;x&quot;&gt;&amp;&lt;/a&gt;"
        );
    }
}
