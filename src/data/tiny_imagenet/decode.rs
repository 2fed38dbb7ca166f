//! A JPEG file's bytes as planes of red, green and blue, of the size that is asked for.

use crate::data::image;
use crate::data::resize::Resize;

/// Height and width of the data set's images.
pub(super) const SIDE: usize = 64;
/// Far more than an image of this size takes; what is larger is not read.
pub(super) const MOST_BYTES: u64 = 1 << 20;

/// The (C, H, W) bytes of the image in `jpeg`, or in a few words why there is none.
pub(super) fn decode(jpeg: &[u8], resize: &Resize) -> Result<Vec<u8>, String> {
    let pixels = image::jpeg(jpeg, |w, h| match (w, h) {
        (SIDE, SIDE) => Ok(()),
        _ => Err(format!("is {w}x{h}; expected {SIDE}x{SIDE}")),
    })?;
    Ok(pixels.planes(3, resize))
}

#[cfg(test)]
mod tests {
    use super::super::scan::tests::{jpeg, sized};
    use super::*;
    use crate::random::Generator;
    use jpeg_encoder::{ColorType, Encoder};

    fn plain(jpeg: &[u8]) -> Result<Vec<u8>, String> {
        decode(jpeg, &Resize::new([SIDE; 2], [SIDE; 2]))
    }

    #[test]
    fn colors_come_as_planes_and_gray_as_three_equal_ones() {
        let planes = plain(&jpeg(200, ColorType::Rgb)).unwrap();
        assert_eq!(planes.len(), 3 * 64 * 64);
        let near = |a: u8, b: usize| a.abs_diff(b as u8) <= 6;
        for (i, p) in planes.into_iter().enumerate() {
            let expected = [200, i % 64 * 3, 40][i / 4096];
            assert!(near(p, expected), "{i}: {p}, not {expected}");
        }
        let planes = plain(&jpeg(77, ColorType::Luma)).unwrap();
        assert_eq!(planes, [77; 3 * 64 * 64]);
        let small = decode(&jpeg(77, ColorType::Luma), &Resize::new([SIDE; 2], [8; 2])).unwrap();
        assert_eq!(small, [77; 3 * 8 * 8]);
    }

    #[test]
    fn progressive_files_decode() {
        let pixels = vec![90; 3 * 64 * 64];
        let mut bytes = Vec::new();
        let mut encoder = Encoder::new(&mut bytes, 90);
        encoder.set_progressive(true);
        encoder.encode(&pixels, 64, 64, ColorType::Rgb).unwrap();
        let planes = plain(&bytes).unwrap();
        assert!(planes.iter().all(|&p| p.abs_diff(90) <= 1));
    }

    #[test]
    fn what_is_no_image_of_the_set_says_so() {
        let why = |bytes: &[u8]| plain(bytes).unwrap_err();
        let small = sized(9, ColorType::Rgb, 16, 64);
        assert_eq!(why(&small), "is 16x64; expected 64x64");
        let cmyk = jpeg(9, ColorType::Cmyk);
        assert_eq!(
            why(&cmyk),
            "has pixels of CMYK32; expected RGB or grayscale"
        );
        let good = jpeg(9, ColorType::Rgb);
        for length in 0..good.len() {
            let e = why(&good[..length]);
            assert!(e.starts_with("does not decode: "), "{length}: {e}");
        }
        assert!(why(b"\x89PNG....").contains("not an SOI marker"));
    }

    #[test]
    fn no_damage_is_a_panic() {
        let mut rng = Generator::new(5);
        for color in [ColorType::Rgb, ColorType::Luma] {
            let good = jpeg(120, color);
            for _ in 0..2000 {
                let mut bytes = good.clone();
                for _ in 0..=rng.below(4) {
                    let at = rng.below(bytes.len() as u64) as usize;
                    bytes[at] = rng.below(256) as u8;
                }
                if let Err(why) = plain(&bytes) {
                    assert!(!why.contains("panicked"), "{bytes:?}");
                }
            }
        }
    }
}
