//! Image files, JPEG and PNG, as planes of bytes of the size and the channels that a network takes.

use std::fs::File;
use std::io::{Cursor, Read};
use std::panic::catch_unwind;
use std::path::Path;

use jpeg_decoder::PixelFormat;
use png::{ColorType, Transformations};

use super::resize::Resize;
use crate::error::{self, Error};

/// Far more than a photograph takes; what is larger is not read.
const MOST_BYTES: u64 = 256 << 20;
/// The same of pixels, by which a small file could take all memory.
const MOST_PIXELS: usize = 1 << 27;
/// A JPEG's longest side, and for a PNG as good a bound.
const LONGEST: usize = 65_535;

/// The bytes (C, H, W) of a JPEG or PNG file in the size `shape` = [C, H, W], C being 1 or 3.
///
/// Resized as torchvision's `Resize` of a PIL image does it, bilinear with antialiasing; the whole
/// image is taken, so that its proportions become those of `shape`. A grey image has three equal
/// channels where three are asked for, and a coloured one becomes grey by PIL's weights (ITU-R
/// 601-2). Palettes are looked up, 16 bits become 8, and what is transparent lies on white, as
/// viewers show it. What is no such file is an [`Error::Data`] that names it.
///
/// ```
/// # use cotangent::{data::read_image, train::save_grid};
/// # let dir = tempfile::tempdir().unwrap();
/// let path = dir.path().join("grey.png");
/// save_grid(&path, &[0.0, 1.0], (1, 1, 1, 2), 1, 4)?;
/// assert_eq!(read_image(&path, [3, 32, 32])?.len(), 3 * 32 * 32);
/// # Ok::<(), cotangent::Error>(())
/// ```
pub fn read_image(path: impl AsRef<Path>, shape: [usize; 3]) -> error::Result<Vec<u8>> {
    let path = path.as_ref();
    let [channels, h, w] = shape;
    if !matches!(channels, 1 | 3) || h == 0 || w == 0 {
        let why = format!("images of {shape:?}; expected 1 or 3 channels and sides over 0");
        return Err(Error::argument("read_image", why));
    }
    let mut file = Vec::new();
    let opened = File::open(path).map_err(Error::io(path))?;
    let read = opened.take(MOST_BYTES + 1).read_to_end(&mut file);
    read.map_err(Error::io(path))?;
    if file.len() as u64 > MOST_BYTES {
        let why = format!("is over {MOST_BYTES} bytes: no image that is read here");
        return Err(Error::data(path, why));
    }
    let pixels = any(&file).map_err(|why| Error::data(path, why))?;
    Ok(pixels.planes(channels, &Resize::new(pixels.size, [h, w])))
}

/// An image as a file has it.
pub(super) struct Pixels {
    /// Height and width, both over 0.
    size: [usize; 2],
    /// Row-major, the channels of a pixel side by side.
    bytes: Vec<u8>,
    /// One channel; else red, green and blue.
    grey: bool,
}

impl Pixels {
    /// Planes of the size that `resize` makes of this one: 1, or 3 of `channels`.
    pub(super) fn planes(&self, channels: usize, resize: &Resize) -> Vec<u8> {
        let mut out = Vec::new();
        if self.grey {
            resize.append(&self.bytes, &mut out);
            return out.repeat(channels);
        }
        let rgb = self.bytes.chunks_exact(3);
        if channels == 1 {
            let plane: Vec<u8> = rgb.map(|p| luma([p[0], p[1], p[2]])).collect();
            resize.append(&plane, &mut out);
        } else {
            for channel in 0..3 {
                let plane: Vec<u8> = rgb.clone().map(|p| p[channel]).collect();
                resize.append(&plane, &mut out);
            }
        }
        out
    }
}

/// PIL's `convert("L")`: 0.299 R + 0.587 G + 0.114 B.
fn luma([r, g, b]: [u8; 3]) -> u8 {
    ((r as u32 * 19_595 + g as u32 * 38_470 + b as u32 * 7_471 + (1 << 15)) >> 16) as u8
}

/// Decode by what the file's first bytes say, whatever its name; or in a few words why there is no
/// image.
fn any(file: &[u8]) -> Result<Pixels, String> {
    if file.starts_with(b"\x89PNG\r\n\x1a\n") {
        decoded("PNG", || png(file))
    } else if file.starts_with(b"\xff\xd8") {
        jpeg(file, bounded)
    } else {
        Err("is neither a JPEG nor a PNG file".into())
    }
}

fn bounded(w: usize, h: usize) -> Result<(), String> {
    if w.max(h) > LONGEST || w.saturating_mul(h) > MOST_PIXELS {
        return Err(format!(
            "is {w}x{h}; expected at most {LONGEST} a side and {MOST_PIXELS} pixels"
        ));
    }
    Ok(())
}

/// The decoders are written for any input, but no file may end a run if that is not so.
fn decoded(
    name: &str,
    decode: impl FnOnce() -> Result<Pixels, String> + std::panic::UnwindSafe,
) -> Result<Pixels, String> {
    catch_unwind(decode).unwrap_or_else(|_| Err(format!("the {name} decoder panicked")))
}

/// A JPEG whose width and height `fits` accepts.
pub(super) fn jpeg(
    file: &[u8],
    fits: fn(usize, usize) -> Result<(), String>,
) -> Result<Pixels, String> {
    decoded("JPEG", || {
        let mut decoder = jpeg_decoder::Decoder::new(file);
        let not = |e: jpeg_decoder::Error| format!("does not decode: {e}");
        // the header alone first: a wrong size takes no memory
        decoder.read_info().map_err(not)?;
        let info = decoder.info().ok_or("does not decode: no frame header")?;
        let (w, h) = (info.width as usize, info.height as usize);
        fits(w, h)?;
        let grey = match info.pixel_format {
            PixelFormat::L8 => true,
            PixelFormat::RGB24 => false,
            other => {
                return Err(format!(
                    "has pixels of {other:?}; expected RGB or grayscale"
                ));
            }
        };
        pixels([h, w], decoder.decode().map_err(not)?, grey)
    })
}

fn png(file: &[u8]) -> Result<Pixels, String> {
    let not = |e: png::DecodingError| format!("does not decode: {e}");
    let mut decoder = png::Decoder::new(Cursor::new(file));
    decoder.set_transformations(Transformations::normalize_to_color8());
    let header = decoder.read_header_info().map_err(not)?;
    bounded(header.width as usize, header.height as usize)?;
    let mut reader = decoder.read_info().map_err(not)?;
    let size = reader.output_buffer_size();
    let mut bytes = vec![0; size.ok_or("does not decode: too large")?];
    let frame = reader.next_frame(&mut bytes).map_err(not)?;
    bytes.truncate(frame.buffer_size());
    let (bytes, grey) = match frame.color_type {
        ColorType::Grayscale => (bytes, true),
        ColorType::Rgb => (bytes, false),
        ColorType::GrayscaleAlpha => (on_white::<2>(&bytes), true),
        ColorType::Rgba => (on_white::<4>(&bytes), false),
        ColorType::Indexed => return Err("does not decode: its palette is missing".into()),
    };
    pixels([frame.height as usize, frame.width as usize], bytes, grey)
}

/// Colours of `N` bytes, the last of which is the opacity, before white.
fn on_white<const N: usize>(bytes: &[u8]) -> Vec<u8> {
    let blend = |c: u8, a: u8| {
        let (c, a) = (c as u32, a as u32);
        ((c * a + 255 * (255 - a) + 127) / 255) as u8
    };
    bytes
        .chunks_exact(N)
        .flat_map(|p| p[..N - 1].iter().map(move |&c| blend(c, p[N - 1])))
        .collect()
}

/// Bytes that are as many as the size says.
fn pixels(size: [usize; 2], bytes: Vec<u8>, grey: bool) -> Result<Pixels, String> {
    let channels = if grey { 1 } else { 3 };
    if bytes.is_empty() || bytes.len() != size[0] * size[1] * channels {
        return Err(format!("does not decode: {} bytes of pixels", bytes.len()));
    }
    Ok(Pixels { size, bytes, grey })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Generator;
    use png::BitDepth;

    /// A PNG file of 2 x 2 pixels.
    fn small(colour: ColorType, depth: BitDepth, data: &[u8], palette: &[u8]) -> Vec<u8> {
        let mut file = Vec::new();
        let mut encoder = png::Encoder::new(&mut file, 2, 2);
        encoder.set_color(colour);
        encoder.set_depth(depth);
        if !palette.is_empty() {
            encoder.set_palette(palette.to_vec());
        }
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(data).unwrap();
        writer.finish().unwrap();
        file
    }

    fn read(file: &[u8], shape: [usize; 3]) -> error::Result<Vec<u8>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("it");
        std::fs::write(&path, file).unwrap();
        read_image(&path, shape)
    }

    #[test]
    fn every_kind_of_png_comes_as_planes() {
        use BitDepth::{Eight, One, Sixteen};
        use ColorType::{Grayscale, GrayscaleAlpha, Indexed, Rgb, Rgba};
        let rgb = [9, 8, 7, 250, 200, 150, 0, 0, 0, 255, 255, 255];
        let planes = [9, 250, 0, 255, 8, 200, 0, 255, 7, 150, 0, 255];
        let wide = |bytes: &[u8]| -> Vec<u8> { bytes.iter().flat_map(|&b| [b, 77]).collect() };
        let rgba = [
            9, 8, 7, 255, 250, 200, 150, 255, 9, 9, 9, 0, 0, 100, 255, 51,
        ];
        let blended = [9, 250, 255, 204, 8, 200, 255, 224, 7, 150, 255, 255];
        let grey = [0, 50, 100, 200];
        for (name, file, expected) in [
            ("rgb", small(Rgb, Eight, &rgb, &[]), &planes[..]),
            ("rgb16", small(Rgb, Sixteen, &wide(&rgb), &[]), &planes),
            ("rgba", small(Rgba, Eight, &rgba, &[]), &blended),
            (
                "palette",
                small(Indexed, Eight, &[0, 1, 2, 3], &rgb),
                &planes,
            ),
            ("grey", small(Grayscale, Eight, &grey, &[]), &grey.repeat(3)),
            (
                "grey16",
                small(Grayscale, Sixteen, &wide(&grey), &[]),
                &grey.repeat(3),
            ),
            (
                "bits",
                small(Grayscale, One, &[0b0100_0000, 0b1000_0000], &[]),
                &[0, 255, 255, 0].repeat(3),
            ),
            (
                "grey with alpha",
                small(GrayscaleAlpha, Eight, &[0, 255, 50, 255, 9, 0, 0, 51], &[]),
                &[0, 50, 255, 204].repeat(3),
            ),
        ] {
            assert_eq!(read(&file, [3, 2, 2]).unwrap(), expected, "{name}");
        }
        let file = small(Grayscale, Eight, &grey, &[]);
        assert_eq!(read(&file, [1, 2, 2]).unwrap(), grey);
    }

    #[test]
    fn colours_become_grey_as_pil_makes_them() {
        // by Pillow 13.0's convert("L")
        for (rgb, grey) in [
            ([255, 0, 0], 76),
            ([0, 255, 0], 150),
            ([0, 0, 255], 29),
            ([12, 200, 77], 130),
            ([255, 255, 255], 255),
        ] {
            let file = small(ColorType::Rgb, BitDepth::Eight, &rgb.repeat(4), &[]);
            assert_eq!(read(&file, [1, 3, 5]).unwrap(), [grey; 15]);
        }
    }

    #[test]
    fn jpegs_of_any_size_become_the_networks() {
        use jpeg_encoder::{ColorType, Encoder};
        let jpeg = |w: u16, h: u16, colour, pixel: &[u8]| {
            let mut file = Vec::new();
            let pixels = pixel.repeat(w as usize * h as usize);
            Encoder::new(&mut file, 95)
                .encode(&pixels, w, h, colour)
                .unwrap();
            file
        };
        let planes = read(&jpeg(50, 30, ColorType::Rgb, &[200, 100, 40]), [3, 8, 16]).unwrap();
        assert_eq!(planes.len(), 3 * 8 * 16);
        for (plane, value) in planes.chunks(8 * 16).zip([200u8, 100, 40]) {
            assert!(plane.iter().all(|p| p.abs_diff(value) <= 2), "{plane:?}");
        }
        let grey = jpeg(3, 200, ColorType::Luma, &[90]);
        let planes = read(&grey, [3, 4, 4]).unwrap();
        assert!(planes.iter().all(|p| p.abs_diff(90) <= 1), "{planes:?}");
        let e = read(&jpeg(8, 8, ColorType::Cmyk, &[1; 4]), [3, 4, 4]).unwrap_err();
        assert!(e.to_string().contains("CMYK32"), "{e}");
    }

    #[test]
    fn what_is_no_image_is_an_error_that_names_the_file() {
        let noise: Vec<u8> = (0..12).collect();
        let whole = small(ColorType::Rgb, BitDepth::Eight, &noise, &[]);
        let pixels = whole.windows(4).position(|w| w == b"IDAT").unwrap();
        for length in 0..=pixels {
            let e = read(&whole[..length], [3, 2, 2]).unwrap_err().to_string();
            let why = ["neither a JPEG nor a PNG", "does not decode: "][(length >= 8) as usize];
            assert!(e.contains("/it: ") && e.contains(why), "{length}: {e}");
        }
        // a header that asks for all memory; its sum is right
        let mut huge = whole.clone();
        huge[16..20].copy_from_slice(&60_000u32.to_be_bytes());
        huge[20..24].copy_from_slice(&60_000u32.to_be_bytes());
        let sum = crc32fast::hash(&huge[12..29]);
        huge[29..33].copy_from_slice(&sum.to_be_bytes());
        let e = read(&huge, [3, 2, 2]).unwrap_err().to_string();
        assert!(e.contains("is 60000x60000; expected at most"), "{e}");
        for shape in [[2, 2, 2], [3, 0, 2], [1, 2, 0]] {
            let e = read(&whole, shape).unwrap_err();
            assert!(matches!(e, Error::Argument { .. }), "{e}");
        }
        let dir = tempfile::tempdir().unwrap();
        for path in [dir.path(), &dir.path().join("none.png")] {
            let e = read_image(path, [3, 2, 2]).unwrap_err();
            assert!(matches!(&e, Error::Io { path: p, .. } if p == path), "{e}");
        }
    }

    #[test]
    fn no_damage_is_a_panic() {
        let mut rng = Generator::new(5);
        let noise: Vec<u8> = (0..16).map(|i| i * 15).collect();
        let good = small(ColorType::Rgba, BitDepth::Eight, &noise, &[]);
        for _ in 0..2000 {
            let mut bytes = good.clone();
            for _ in 0..=rng.below(4) {
                // behind the signature
                let at = 8 + rng.below(bytes.len() as u64 - 8) as usize;
                bytes[at] = rng.below(256) as u8;
            }
            if let Err(why) = any(&bytes) {
                assert!(!why.contains("panicked"), "{bytes:?}");
            }
        }
    }
}
