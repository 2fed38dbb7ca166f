//! The data sets that are published, by name, and what is known of their files.

use std::fmt;
use std::str::FromStr;

use super::{cifar, idx};
use crate::error::{Error, Result};

/// A data set that is published: [`fetch`](super::fetch()) gets it, [`verify`](super::verify()) checks it.
///
/// ```
/// use cotangent::data::PublishedSet;
///
/// let set: PublishedSet = "cifar10".parse()?;
/// assert_eq!(set, PublishedSet::Cifar10);
/// assert!("cifar100".parse::<PublishedSet>().is_err());
/// # Ok::<(), cotangent::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishedSet {
    /// CIFAR-10, binary version: an archive of 170 MB.
    Cifar10,
    /// MNIST: four files, 12 MB.
    Mnist,
    /// Fashion-MNIST: four files, 31 MB.
    FashionMnist,
    /// Tiny-ImageNet with 200 classes: an archive of 248 MB.
    TinyImageNet,
}

/// A file's name and its MD5 sum.
pub(super) type Sums = &'static [(&'static str, &'static str)];

/// As the unpacked archive of the published sum has them; other projects list the same.
const CIFAR10: Sums = &[
    (cifar::CIFAR10_FILES[0], "5dd7e06a14cb22eb9f671a540d1b7c25"),
    (cifar::CIFAR10_FILES[1], "5ea93a67294ea407fff1d09f752e9692"),
    (cifar::CIFAR10_FILES[2], "942cd6a4bcdd0dd3c604fbe906cb4421"),
    (cifar::CIFAR10_FILES[3], "ae636b3ba5c66a11e91e8cb52e771fcb"),
    (cifar::CIFAR10_FILES[4], "53f37980c15c3d472c316c40844f3f0d"),
    (cifar::CIFAR10_FILES[5], "803d5f7f4d78ea53de84dbe85f74fb6d"),
];
const MNIST: Sums = &[
    (idx::FILES[0], "6bbc9ace898e44ae57da46a324031adb"),
    (idx::FILES[1], "a25bea736e30d166cdddb491f175f624"),
    (idx::FILES[2], "2646ac647ad5339dbf082846283269ea"),
    (idx::FILES[3], "27ae3e4e09519cfbb04c329615203637"),
];
const FASHION_MNIST: Sums = &[
    (idx::FILES[0], "f4a8712d7a061bf5bd6d2ca38dc4d50a"),
    (idx::FILES[1], "9018921c3c673c538a1fc5bad174d6f9"),
    (idx::FILES[2], "8181f5470baa50b63fa0f6fddb340f0a"),
    (idx::FILES[3], "15d484375f8d13e6eb1aabb0c3f46965"),
];

/// Images of each class of MNIST: training, test.
const DIGITS: [[usize; 10]; 2] = [
    [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
    [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
];

impl PublishedSet {
    /// All of them.
    pub const ALL: [PublishedSet; 4] = [
        PublishedSet::Cifar10,
        PublishedSet::Mnist,
        PublishedSet::FashionMnist,
        PublishedSet::TinyImageNet,
    ];

    /// As it is named on the command line and in recipes.
    pub fn name(self) -> &'static str {
        match self {
            PublishedSet::Cifar10 => "cifar10",
            PublishedSet::Mnist => "mnist",
            PublishedSet::FashionMnist => "fashion_mnist",
            PublishedSet::TinyImageNet => "tiny_imagenet",
        }
    }

    /// The sums of its unpacked files, as far as they are known: of Tiny-ImageNet's 120,000, none.
    pub(super) fn unpacked(self) -> Sums {
        match self {
            PublishedSet::Cifar10 => CIFAR10,
            PublishedSet::Mnist => MNIST,
            PublishedSet::FashionMnist => FASHION_MNIST,
            PublishedSet::TinyImageNet => &[],
        }
    }

    /// How many images of class `class` were published: for training, and to test with.
    pub(super) fn images(self, class: usize) -> [usize; 2] {
        match self {
            PublishedSet::Cifar10 => [5000, 1000],
            PublishedSet::Mnist => DIGITS.map(|n| n.get(class).copied().unwrap_or(0)),
            PublishedSet::FashionMnist => [6000, 1000],
            PublishedSet::TinyImageNet => [500, 50],
        }
    }
}

impl fmt::Display for PublishedSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for PublishedSet {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let mut all = Self::ALL.into_iter();
        all.find(|set| set.name() == name).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            Error::config("data set", format!("{name:?}; expected one of {names}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_have_names_and_all_their_images() {
        for set in PublishedSet::ALL {
            assert_eq!(set.to_string().parse::<PublishedSet>().unwrap(), set);
            for (file, sum) in set.unpacked() {
                assert!(sum.len() == 32, "{file}");
            }
        }
        let total = |set: PublishedSet| {
            let each = |part: usize| -> usize { (0..10).map(|c| set.images(c)[part]).sum() };
            [each(0), each(1)]
        };
        assert_eq!(total(PublishedSet::Cifar10), [50_000, 10_000]);
        assert_eq!(total(PublishedSet::Mnist), [60_000, 10_000]);
        assert_eq!(total(PublishedSet::FashionMnist), [60_000, 10_000]);
        assert_eq!(
            "cifar".parse::<PublishedSet>().unwrap_err().to_string(),
            "configuration: data set: \"cifar\"; expected one of cifar10, mnist, fashion_mnist, \
             tiny_imagenet"
        );
    }
}
