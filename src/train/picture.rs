//! Images and filters as one picture: a grid, as CS231n's `visualize_grid` lays it out.

use std::path::Path;

use crate::error::{Error, Result};
use crate::nn::{self, Module, Slot};
use crate::train::files::write_atomic;

/// Over this a picture is a mistake in `upscale`, and its memory would be a surprise.
const MOST_PIXELS: usize = 1 << 28;
/// The width of a picture of filters, roughly.
const FILTERS_SIDE: usize = 512;

/// Save images of shape (n, c, h, w), c = 1 (grey) or 3 (red, green, blue), as a PNG grid.
///
/// Each image is stretched on its own so that its least value is 0 and its greatest 255 (one of
/// a single value is mid grey; NaN is black, infinities are the ends). Each of its pixels becomes
/// `upscale` x `upscale`, and black lines, as wide, go around and between the images.
/// [`Error::Argument`] where the numbers do not fit together.
pub fn save_grid(
    path: impl AsRef<Path>,
    images: &[f32],
    shape: (usize, usize, usize, usize),
    columns: usize,
    upscale: usize,
) -> Result<()> {
    grid(path.as_ref(), images, shape, columns, upscale, stretch)
}

/// [`save_grid`] of images whose black is 0 and whose white is 1, for all of them.
pub(super) fn save_pictures(
    path: &Path,
    images: &[f32],
    shape: (usize, usize, usize, usize),
    columns: usize,
    upscale: usize,
) -> Result<()> {
    // `as` saturates, and makes NaN 0
    let bytes = |image: &[f32]| image.iter().map(|x| (255.0 * x).round() as u8).collect();
    grid(path, images, shape, columns, upscale, bytes)
}

fn grid(
    path: &Path,
    images: &[f32],
    (n, c, h, w): (usize, usize, usize, usize),
    columns: usize,
    upscale: usize,
    bytes: impl Fn(&[f32]) -> Vec<u8>,
) -> Result<()> {
    let refuse = |why: String| Err(Error::argument("save_grid", why));
    if c != 1 && c != 3 {
        return refuse(format!("an image has 1 or 3 channels but got {c}"));
    }
    if n == 0 || h == 0 || w == 0 || columns == 0 || upscale == 0 {
        return refuse(format!(
            "nothing to draw: {n} images of {h} x {w} in {columns} columns, upscale {upscale}"
        ));
    }
    let image_len = c.checked_mul(h).and_then(|x| x.checked_mul(w));
    if image_len.and_then(|x| x.checked_mul(n)) != Some(images.len()) {
        return refuse(format!(
            "{} values are not ({n}, {c}, {h}, {w})",
            images.len()
        ));
    }
    let columns = columns.min(n);
    let rows = n.div_ceil(columns);
    let Some((width, height)) = size(rows * (h + 1) + 1, columns * (w + 1) + 1, upscale) else {
        return refuse(format!(
            "{n} images of {h} x {w} with upscale {upscale} are more than {MOST_PIXELS} pixels"
        ));
    };

    let mut pixels = vec![0u8; width * height * c];
    for (i, image) in images.chunks_exact(c * h * w).enumerate() {
        let bytes = bytes(image);
        let top = (i / columns * (h + 1) + 1) * upscale;
        let left = (i % columns * (w + 1) + 1) * upscale;
        for y in 0..h * upscale {
            for x in 0..w * upscale {
                for channel in 0..c {
                    let from = (channel * h + y / upscale) * w + x / upscale;
                    pixels[((top + y) * width + left + x) * c + channel] = bytes[from];
                }
            }
        }
    }
    let colour = if c == 1 {
        png::ColorType::Grayscale
    } else {
        png::ColorType::Rgb
    };
    save_png(path, &pixels, width as u32, height as u32, colour)
}

/// Save the filters of a network's first layer by [`save_grid`] where it is a convolution of images
/// with 1 or 3 channels; whether it is.
///
/// ```
/// # use cotangent::{models, train::save_filters};
/// # let dir = tempfile::tempdir().unwrap();
/// let path = dir.path().join("filters.png");
/// let mut net = models::build("three_layer", [3, 32, 32], 10, 0)?;
/// assert!(save_filters(&path, &mut *net)? && path.exists());
/// # Ok::<(), cotangent::Error>(())
/// ```
pub fn save_filters(path: impl AsRef<Path>, model: &mut (impl Module + ?Sized)) -> Result<bool> {
    let mut first = None;
    nn::visit(model, |_, slot| {
        // not the numbers of a norm that comes before it
        if let (Slot::Parameter(t), None) = (slot, &first)
            && t.rank() > 1
        {
            first = Some(t.detach());
        }
    });
    let Some(filters) = first else {
        return Ok(false);
    };
    let &[n, c @ (1 | 3), h, w] = &filters.shape()[..] else {
        return Ok(false);
    };
    // a square, about FILTERS_SIDE wide
    let columns = square(n);
    let upscale = (FILTERS_SIDE / (columns * (w + 1) + 1)).max(1);
    save_grid(path, &filters.to_vec()?, (n, c, h, w), columns, upscale)?;
    Ok(true)
}

/// Write 8-bit pixels, rows from the top, as a PNG file.
pub(crate) fn save_png(
    path: &Path,
    pixels: &[u8],
    width: u32,
    height: u32,
    colour: png::ColorType,
) -> Result<()> {
    write_atomic(path, |w| {
        let mut encoder = png::Encoder::new(w, width, height);
        encoder.set_color(colour);
        encoder.set_depth(png::BitDepth::Eight);
        let mut writer = encoder.write_header()?;
        writer.write_image_data(pixels)?;
        Ok(writer.finish()?)
    })
}

/// An image's bytes (C, H, W), grey or red, green and blue, as a PNG file's.
pub(crate) fn png_bytes(image: &[u8], [c, h, w]: [usize; 3]) -> Result<Vec<u8>> {
    let colour = match c {
        1 => png::ColorType::Grayscale,
        3 => png::ColorType::Rgb,
        _ => {
            let why = format!("an image has 1 or 3 channels but got {c}");
            return Err(Error::argument("png_bytes", why));
        }
    };
    let pixels: Vec<u8> = (0..h * w)
        .flat_map(|i| (0..c).map(move |channel| image[channel * h * w + i]))
        .collect();
    let mut out = Vec::new();
    let mut encoder = png::Encoder::new(&mut out, w as u32, h as u32);
    encoder.set_color(colour);
    encoder.set_depth(png::BitDepth::Eight);
    let written = encoder.write_header().and_then(|mut writer| {
        writer.write_image_data(&pixels)?;
        writer.finish()
    });
    written.map_err(|e| Error::argument("png_bytes", e.to_string()))?;
    Ok(out)
}

/// (width, height) in pixels, or nothing where that is too large.
fn size(rows: usize, columns: usize, upscale: usize) -> Option<(usize, usize)> {
    let (width, height) = (columns.checked_mul(upscale)?, rows.checked_mul(upscale)?);
    (width.checked_mul(height)? <= MOST_PIXELS).then_some((width, height))
}

/// Values to bytes, the least to 0 and the greatest to 255.
fn stretch(image: &[f32]) -> Vec<u8> {
    let (low, high) = image
        .iter()
        .filter(|x| x.is_finite())
        .fold((f32::MAX, f32::MIN), |(l, h), &x| (l.min(x), h.max(x)));
    // in f64, where high - low cannot overflow
    let (low, range) = (low as f64, high as f64 - low as f64);
    image
        .iter()
        .map(|&x| match x {
            _ if x.is_finite() && range <= 0.0 => 128,
            // `as` saturates, and makes NaN 0
            _ => (255.0 * (x as f64 - low) / range.max(f64::MIN_POSITIVE)).round() as u8,
        })
        .collect()
}

/// Columns of a grid of `n` that is about as many high.
pub(super) fn square(n: usize) -> usize {
    (1..=n).find(|side| side * side >= n).unwrap_or(1)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn decode(path: &Path) -> (usize, usize, usize, Vec<u8>) {
        let file = std::io::BufReader::new(std::fs::File::open(path).unwrap());
        let mut reader = png::Decoder::new(file).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        pixels.truncate(info.buffer_size());
        let (w, h) = (info.width as usize, info.height as usize);
        (w, h, info.color_type.samples(), pixels)
    }

    #[test]
    fn grey_images_lie_in_rows_with_a_border() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("g.png");
        // three images of 1 x 2 in two columns, the third constant
        save_grid(&path, &[0., 1., -2., 2., 7., 7.], (3, 1, 1, 2), 2, 1).unwrap();
        let (w, h, c, px) = decode(&path);
        assert_eq!((w, h, c), (7, 5, 1));
        #[rustfmt::skip]
        assert_eq!(px, [
            0, 0,   0,   0, 0, 0,   0,
            0, 0,   255, 0, 0, 255, 0,
            0, 0,   0,   0, 0, 0,   0,
            0, 128, 128, 0, 0, 0,   0,
            0, 0,   0,   0, 0, 0,   0,
        ]);
    }

    #[test]
    fn pictures_share_black_and_white() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.png");
        save_pictures(&path, &[-1.0, 0.25, 0.5, 2.0], (2, 1, 1, 2), 2, 1).unwrap();
        let (w, _, _, px) = decode(&path);
        assert_eq!(px[w..2 * w], [0, 0, 64, 0, 128, 255, 0]);
    }

    #[test]
    fn colour_is_interleaved_and_upscaled() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.png");
        save_grid(&path, &[0.0, 0.5, 1.0], (1, 3, 1, 1), 8, 2).unwrap();
        let (w, h, c, px) = decode(&path);
        assert_eq!((w, h, c), (6, 6, 3));
        for y in 0..6 {
            for x in 0..6 {
                let inside = (2..4).contains(&y) && (2..4).contains(&x);
                let expected = if inside { [0, 128, 255] } else { [0, 0, 0] };
                assert_eq!(px[(y * 6 + x) * 3..][..3], expected, "at {y}, {x}");
            }
        }
    }

    #[test]
    fn a_first_layer_that_is_no_convolution_of_images_has_no_picture() -> Result<()> {
        use crate::random::Generator;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.png");
        let rng = &mut Generator::new(0);
        let conv = |channels, rng: &mut Generator| {
            nn::Conv2d::new(channels, 5, nn::Conv2dConfig::same(3), rng)
        };
        assert!(!save_filters(
            &path,
            &mut nn::Linear::new(3, 2, true, rng)?
        )?);
        assert!(!save_filters(&path, &mut conv(2, rng)?)?);
        assert!(!save_filters(&path, &mut nn::Flatten)?);
        assert!(!path.exists());
        for (channels, samples) in [(1, 1), (3, 3)] {
            let norm = nn::BatchNorm2d::new(channels)?;
            let mut net = nn::Sequential::new().push(norm).push(conv(channels, rng)?);
            assert!(save_filters(&path, &mut net)?);
            let (w, h, c, _) = decode(&path);
            // five filters in three columns of 3 pixels and a line, 39 times as large
            assert_eq!((w, h, c), (13 * 39, 9 * 39, samples));
        }
        Ok(())
    }

    #[test]
    fn values_that_are_not_finite_do_not_spread() {
        assert_eq!(
            stretch(&[0.0, f32::NAN, 1.0, f32::INFINITY, f32::NEG_INFINITY]),
            [0, 0, 255, 255, 0]
        );
        assert_eq!(stretch(&[f32::NAN, f32::NAN]), [0, 0]);
        assert_eq!(stretch(&[f32::MIN, 0.0, f32::MAX]), [0, 128, 255]);
        assert_eq!(stretch(&[3.0, f32::NAN]), [128, 0]);
    }

    #[test]
    fn what_does_not_fit_is_a_typed_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("e.png");
        for (len, shape, columns, upscale) in [
            (8, (1, 2, 2, 2), 1, 1),
            (4, (2, 1, 2, 2), 1, 1),
            (4, (1, 1, 2, 2), 0, 1),
            (4, (1, 1, 2, 2), 1, 0),
            (4, (1, 1, 2, 2), 1, 1 << 20),
            (4, (1, 1, 2, 2), 1, usize::MAX),
            (0, (0, 1, 2, 2), 1, 1),
            (4, (usize::MAX, 1, 2, 2), 1, 1),
        ] {
            let e = save_grid(&path, &vec![0.0; len], shape, columns, upscale).unwrap_err();
            assert!(matches!(e, Error::Argument { .. }), "{shape:?}: {e}");
        }
        assert!(!path.exists());
        let e = save_grid(dir.path().join("no/e.png"), &[0.0], (1, 1, 1, 1), 1, 1).unwrap_err();
        assert!(matches!(e, Error::Io { .. }), "{e}");
    }
}
