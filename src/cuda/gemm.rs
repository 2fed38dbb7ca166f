//! Which kernel of `kernels/gemm*.cu` computes a matrix product: a model of the time each would take.

use crate::cuda::Kernels;
use crate::dtype::DType;

/// A block's tile of the result, and its kernels.
#[derive(Debug)]
pub(crate) struct Tile {
    /// Rows and columns.
    pub size: [usize; 2],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of shared memory.
    pub shared: u32,
    /// What one multiprocessor of an H100 is taken to do with such tiles, in operations a second.
    rate: f64,
    /// By the operands' memory order: both along k; A along k, B along n; A along m, B along k; A
    /// along m, B along n. Or one kernel for them all.
    kernels: &'static [Kernels],
}

impl Tile {
    /// The kernel for operands whose elements lie together along k, or not.
    pub fn kernels(&self, a_along_k: bool, b_along_k: bool) -> &'static Kernels {
        let layout = 2 * usize::from(!a_along_k) + usize::from(!b_along_k);
        &self.kernels[layout % self.kernels.len()]
    }

    /// Blocks that cover an m x n result.
    pub fn blocks(&self, [m, n]: [usize; 2]) -> usize {
        m.div_ceil(self.size[0]) * n.div_ceil(self.size[1])
    }
}

macro_rules! half_kernels {
    ($($name:ident = $base:literal;)*) => {$(
        static $name: [Kernels; 4] = [
            half_kernels!(@one concat!($base, "_kk")),
            half_kernels!(@one concat!($base, "_kn")),
            half_kernels!(@one concat!($base, "_mk")),
            half_kernels!(@one concat!($base, "_mn")),
        ];
    )*};
    (@one $base:expr) => {
        Kernels::new(
            $base,
            &[
                (DType::BF16, concat!($base, "_bf16")),
                (DType::F16, concat!($base, "_f16")),
            ],
        )
    };
}

half_kernels! {
    HALF_128X256 = "gemm_128x256";
    HALF_128X128 = "gemm_128x128";
    HALF_64X64 = "gemm_64x64";
}

static REAL_128X128: [Kernels; 1] = [Kernels::new(
    "gemm_128x128",
    &[(DType::F32, "gemm_128x128_f32")],
)];
static REAL_64X64: [Kernels; 1] = [Kernels::new(
    "gemm_64x64",
    &[
        (DType::F32, "gemm_64x64_f32"),
        (DType::F64, "gemm_64x64_f64"),
    ],
)];

/// Four stages of 32 deep tiles.
const fn half(m: usize, n: usize, threads: u32, rate: f64, kernels: &'static [Kernels]) -> Tile {
    Tile {
        size: [m, n],
        threads,
        shared: (4 * 32 * (m + n) * 2) as u32,
        rate,
        kernels,
    }
}

/// Two buffers of tiles `depth` deep, of elements of `bytes`.
const fn real(
    size: usize,
    depth: usize,
    bytes: usize,
    rate: f64,
    kernels: &'static [Kernels],
) -> Tile {
    Tile {
        size: [size; 2],
        threads: 256,
        shared: (2 * depth * (2 * size + 8) * bytes) as u32,
        rate,
        kernels,
    }
}

static HALF: [Tile; 3] = [
    half(128, 256, 256, 3.4e12, &HALF_128X256),
    half(128, 128, 128, 2.9e12, &HALF_128X128),
    half(64, 64, 128, 1.6e12, &HALF_64X64),
];
static F32: [Tile; 2] = [
    real(128, 8, 4, 0.35e12, &REAL_128X128),
    real(64, 16, 4, 0.2e12, &REAL_64X64),
];
static F64: [Tile; 1] = [real(64, 8, 8, 0.15e12, &REAL_64X64)];

/// The tiles there are for a dtype: none for integers.
pub(crate) fn tiles(dtype: DType) -> &'static [Tile] {
    match dtype {
        DType::F32 => &F32,
        DType::F64 => &F64,
        DType::BF16 | DType::F16 => &HALF,
        DType::I64 | DType::U8 => &[],
    }
}

/// How to compute a product.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// The kernels.
    pub tile: &'static Tile,
    /// Parts that k is cut into, each its own blocks; more than one leave sums to be added.
    pub splits: usize,
    /// The length of a part, a multiple of 32 if there are several.
    pub depth: usize,
}

impl Plan {
    /// k in about so many parts.
    pub fn new(tile: &'static Tile, k: usize, splits: usize) -> Self {
        if splits <= 1 {
            return Plan {
                tile,
                splits: 1,
                depth: k,
            };
        }
        let depth = k.div_ceil(splits).next_multiple_of(32);
        Plan {
            tile,
            splits: k.div_ceil(depth),
            depth,
        }
    }

    /// The plan that finishes first on an H100, by a model: blocks run in waves of one a
    /// multiprocessor, and parts of k are written and read once. It depends on shapes alone, so
    /// every card gives the same bits. `None` where there is no tile for the dtype.
    pub fn best(dtype: DType, [m, n, k]: [usize; 3], batch: usize) -> Option<Self> {
        const PROCESSORS: usize = 132;
        // the shortest part worth blocks of its own; its sum's launch, and bytes a second
        const SHORTEST: usize = 256;
        const LAUNCH: f64 = 2e-6;
        const BANDWIDTH: f64 = 2e12;
        let seconds = |p: &Plan| {
            let blocks = p.tile.blocks([m, n]) * batch * p.splits;
            let [rows, columns] = p.tile.size;
            let wave = (2 * rows * columns * p.depth) as f64 / p.tile.rate;
            let fold = match p.splits {
                1 => 0.0,
                s => LAUNCH + (8 * m * n * batch * s) as f64 / BANDWIDTH,
            };
            blocks.div_ceil(PROCESSORS) as f64 * wave + fold
        };
        let plans = tiles(dtype).iter().flat_map(|tile| {
            let free = PROCESSORS / (tile.blocks([m, n]) * batch).max(1);
            [1, free.min(k / SHORTEST)].map(|splits| Plan::new(tile, k, splits))
        });
        plans.min_by(|a, b| seconds(a).total_cmp(&seconds(b)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn best(dtype: DType, mnk: [usize; 3]) -> ([usize; 2], usize) {
        let p = Plan::best(dtype, mnk, 1).unwrap();
        assert!(p.splits == 1 || p.depth.is_multiple_of(32));
        assert!(p.splits * p.depth >= mnk[2] && (p.splits - 1) * p.depth < mnk[2].max(1));
        (p.tile.size, p.splits)
    }

    #[test]
    fn the_card_is_filled() {
        use DType::*;
        assert_eq!(best(BF16, [8192; 3]), ([128, 256], 1));
        assert_eq!(best(F32, [4096; 3]), ([128, 128], 1));
        assert_eq!(best(F32, [256, 100, 300]), ([64, 64], 1));
        // a weight's gradient: few tiles, a large batch
        assert_eq!(best(BF16, [512, 512, 65536]), ([128, 256], 16));
        assert!(best(F32, [10, 512, 60000]).1 > 8);
        // nothing to sum, nothing to compute
        assert_eq!(best(F64, [30, 30, 0]).1, 1);
        assert_eq!(best(F64, [0, 30, 3]).1, 1);
        assert!(Plan::best(I64, [1; 3], 1).is_none());
    }
}
