//! Images with what they are taken for and what they are: one picture, as PNG and as SVG.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use plotters::coord::Shift;
use plotters::drawing::DrawingAreaErrorKind;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::error::{Error, Result};
use crate::train::picture::{png_bytes, save_png, square};
use crate::train::plot::{FONT, RIGHT, TEXT, WRONG, register};
use crate::train::{Sample, files};

/// Images of one picture; more of them nobody looks at.
const MOST: usize = 100;
/// The side that images are enlarged to, about, in pixels of the SVG.
const SIDE: f64 = 112.0;
/// The least width of an image's words.
const NARROWEST: usize = 132;
/// Height of a line of words, and of its font.
const LINE: usize = 19;
const FONT_SIZE: usize = 16;
/// Between images, and around all.
const GAP: usize = 14;
/// Width of the frame around an image.
const FRAME: usize = 3;
/// A PNG is so many times larger than the SVG says.
const SHARPER: usize = 2;

/// An [`Error::Config`] where `count` images do not make a picture.
pub fn check_count(count: usize) -> Result<()> {
    if !(1..=MOST).contains(&count) {
        let why = format!("{count} images; expected 1 to {MOST}");
        return Err(Error::config("count", why));
    }
    Ok(())
}

/// Write `predictions.png` and `predictions.svg` into the folder `dir`, and where they are: the
/// images (C, H, W) of `shape`, C being 1 or 3, in rows, each above the class that it is taken for,
/// with the probability, and its own class; green where these are the same, else red. 1 to 100
/// images, their classes among `classes`.
pub fn save_predictions(
    dir: impl AsRef<Path>,
    shape: [usize; 3],
    classes: &[String],
    samples: &[Sample],
) -> Result<[PathBuf; 2]> {
    check_count(samples.len())?;
    let bytes: usize = shape.iter().product();
    let fits = |s: &Sample| s.image.len() == bytes && bytes > 0;
    if !matches!(shape[0], 1 | 3) || !samples.iter().all(fits) {
        let why = format!("expected images of {shape:?}, with 1 or 3 channels");
        return Err(Error::argument("save_predictions", why));
    }
    let sheet = Sheet::new(shape, classes, samples);
    let paths = ["png", "svg"].map(|kind| dir.as_ref().join(format!("predictions.{kind}")));
    register();
    let [w, h] = sheet.size().map(|side| (side * SHARPER) as u32);
    let pixels = sheet.pixels().map_err(Error::io(&paths[0]))?;
    save_png(&paths[0], &pixels, w, h, png::ColorType::Rgb)?;
    let svg = sheet.svg()?;
    files::write_atomic(&paths[1], |w| w.write_all(svg.as_bytes()))?;
    Ok(paths)
}

/// Where everything lies; lengths are the SVG's pixels.
struct Sheet<'a> {
    shape: [usize; 3],
    classes: &'a [String],
    samples: &'a [Sample],
    columns: usize,
    /// How many times an image is enlarged.
    zoom: usize,
}

impl<'a> Sheet<'a> {
    fn new(shape: [usize; 3], classes: &'a [String], samples: &'a [Sample]) -> Self {
        let [_, h, w] = shape;
        let n = samples.len();
        Sheet {
            shape,
            classes,
            samples,
            columns: square(n),
            zoom: (SIDE / h.max(w) as f64).round().max(1.0) as usize,
        }
    }

    /// Width and height of an image.
    fn image(&self) -> [usize; 2] {
        let [_, h, w] = self.shape;
        [w * self.zoom, h * self.zoom]
    }

    /// Width and height of an image with its words.
    fn cell(&self) -> [usize; 2] {
        let [w, h] = self.image();
        [w.max(NARROWEST), h + 2 * FRAME + 2 * LINE]
    }

    /// Width and height of all.
    fn size(&self) -> [usize; 2] {
        let rows = self.samples.len().div_ceil(self.columns);
        let [w, h] = self.cell();
        [self.columns * (w + GAP) + GAP, rows * (h + GAP) + GAP]
    }

    /// The upper left corner of image `i`.
    fn corner(&self, i: usize) -> [usize; 2] {
        let ([w, h], [width, _]) = (self.cell(), self.image());
        let x = GAP + i % self.columns * (w + GAP) + (w - width) / 2;
        [x, GAP + i / self.columns * (h + GAP) + FRAME]
    }

    /// Frames and words, every length `scale` times that of an SVG.
    fn draw<DB: DrawingBackend>(
        &self,
        root: &DrawingArea<DB, Shift>,
        scale: usize,
    ) -> std::result::Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
        let px = |length: usize| (length * scale) as i32;
        let ([w, h], [widest, _]) = (self.image(), self.cell());
        root.fill(&WHITE)?;
        for (i, sample) in self.samples.iter().enumerate() {
            let colour = if sample.is_right() { RIGHT } else { WRONG };
            let [x, y] = self.corner(i);
            let ends = [(x - FRAME, y - FRAME), (x + w + FRAME, y + h + FRAME)];
            let ends = ends.map(|(x, y)| (px(x), px(y)));
            root.draw(&Rectangle::new(ends, colour.filled()))?;
            let sure = format!(" {:.0} %", 100.0 * sample.probability);
            let lines = [
                ("", sample.predicted, &sure[..], colour),
                ("true: ", sample.truth, "", TEXT),
            ];
            for (k, (before, class, behind, colour)) in lines.into_iter().enumerate() {
                let font = (FONT, px(FONT_SIZE)).into_font().color(&colour);
                let style = font.pos(Pos::new(HPos::Center, VPos::Top));
                let name = self.classes.get(class).map_or("?", String::as_str);
                let mut text = format!("{before}{name}{behind}");
                let mut kept = name;
                // a long name loses its end, and the number behind it stays
                while root.estimate_text_size(&text, &style)?.0 > px(widest) as u32 {
                    let Some((end, _)) = kept.char_indices().next_back() else {
                        break;
                    };
                    kept = kept[..end].trim_end();
                    text = format!("{before}{kept}\u{2026}{behind}");
                }
                let at = (px(x) + px(w) / 2, px(y + h + FRAME + 5 + k * LINE));
                root.draw(&Text::new(text, at, style))?;
            }
        }
        root.present()
    }

    fn draw_on<DB: DrawingBackend>(&self, backend: DB, scale: usize) -> std::io::Result<()> {
        self.draw(&backend.into_drawing_area(), scale)
            .map_err(|e| std::io::Error::other(e.to_string()))
    }

    /// The PNG's pixels, red, green and blue.
    fn pixels(&self) -> std::io::Result<Vec<u8>> {
        let [width, height] = self.size().map(|side| side * SHARPER);
        let mut pixels = vec![0; width * height * 3];
        let area = (width as u32, height as u32);
        self.draw_on(BitMapBackend::with_buffer(&mut pixels, area), SHARPER)?;
        let [channels, h, w] = self.shape;
        let zoom = self.zoom * SHARPER;
        for (i, sample) in self.samples.iter().enumerate() {
            let [left, top] = self.corner(i).map(|at| at * SHARPER);
            for y in 0..h * zoom {
                for x in 0..w * zoom {
                    let at = ((top + y) * width + left + x) * 3;
                    for (channel, to) in pixels[at..at + 3].iter_mut().enumerate() {
                        let plane = channel.min(channels - 1);
                        *to = sample.image[(plane * h + y / zoom) * w + x / zoom];
                    }
                }
            }
        }
        Ok(pixels)
    }

    /// The whole SVG, the images inside.
    fn svg(&self) -> Result<String> {
        let [width, height] = self.size();
        let mut svg = String::new();
        let backend = SVGBackend::with_string(&mut svg, (width as u32, height as u32));
        self.draw_on(backend, 1)
            .map_err(Error::io("predictions.svg"))?;
        // plotters would draw each pixel as a rectangle
        let end = svg.rfind("</svg>").unwrap_or(svg.len());
        let behind = svg.split_off(end);
        let [w, h] = self.image();
        for (i, sample) in self.samples.iter().enumerate() {
            let [x, y] = self.corner(i);
            let png = STANDARD.encode(png_bytes(&sample.image, self.shape)?);
            let _ = writeln!(
                svg,
                "<image x=\"{x}\" y=\"{y}\" width=\"{w}\" height=\"{h}\" \
                 style=\"image-rendering:pixelated\" href=\"data:image/png;base64,{png}\"/>"
            );
        }
        Ok(svg + &behind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::picture::tests::decode;

    fn sample(channels: usize, value: u8, truth: usize, predicted: usize) -> Sample {
        Sample {
            image: vec![value; channels * 4 * 2],
            truth,
            predicted,
            probability: 0.876,
        }
    }

    #[test]
    fn right_ones_are_green_and_wrong_ones_red_with_both_classes() -> Result<()> {
        let dir = tempfile::tempdir().unwrap();
        let long = "a name that is far too long to stand under so small an image";
        let classes = ["cat & <co>", long].map(String::from);
        for channels in [1, 3] {
            let samples = [sample(channels, 7, 0, 0), sample(channels, 9, 0, 1)];
            // the two in two columns; 28 times as large, 56 x 112 under words 132 wide
            let paths = save_predictions(dir.path(), [channels, 4, 2], &classes, &samples)?;
            let (w, h, c, pixels) = decode(&paths[0]);
            assert_eq!((w, h, c), (2 * 306, 2 * 184, 3));
            let at = |x: usize, y: usize| &pixels[(y * w + x) * 3..][..3];
            // the images' middles, and their frames
            for (i, (value, frame)) in [(7, [0, 158, 115]), (9, [213, 94, 0])]
                .into_iter()
                .enumerate()
            {
                let middle = 2 * (14 + i * 146 + 66);
                assert_eq!(at(middle, 2 * 60), [value; 3]);
                assert_eq!(at(middle, 2 * 14), frame);
            }
            let svg = std::fs::read_to_string(&paths[1]).unwrap();
            assert_eq!(svg.matches("<image ").count(), 2);
            assert!(svg.trim_end().ends_with("</svg>"));
            for text in ["cat &amp; &lt;co&gt; 88 %", "true: cat &amp; &lt;co&gt;"] {
                assert!(svg.contains(&format!("\n{text}\n")), "{text}");
            }
            let cut = svg.lines().find(|l| l.starts_with("a name")).unwrap();
            assert!(cut.ends_with("\u{2026} 88 %") && cut.len() < 30, "{cut}");
            assert_eq!(svg.matches("#009E73").count(), 2);
            assert_eq!(svg.matches("#D55E00").count(), 2);
        }
        Ok(())
    }

    #[test]
    fn what_makes_no_picture_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let save = |shape, samples: &[Sample]| {
            let e = save_predictions(dir.path(), shape, &[], samples).unwrap_err();
            e.to_string()
        };
        let one = sample(3, 1, 0, 0);
        assert!(save([3, 4, 2], &[]).contains("0 images; expected 1 to 100"));
        assert!(save([3, 4, 2], &vec![one.clone(); 101]).contains("101 images"));
        for shape in [[2, 4, 3], [3, 4, 4], [0, 4, 2]] {
            assert!(save(shape, std::slice::from_ref(&one)).contains("1 or 3 channels"));
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        // classes that have no name, and images larger than the page's words
        let tall = Sample {
            image: vec![0; 300],
            ..one
        };
        assert!(save_predictions(dir.path(), [1, 300, 1], &[], &[tall]).is_ok());
    }
}
