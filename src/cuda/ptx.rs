//! The shipped PTX: which module holds a kernel, and what its parameters are.

/// A kernel of the shipped PTX.
#[derive(Debug)]
pub struct Entry {
    /// Which of [`modules`].
    pub module: usize,
    /// Its parameters' types, a letter each.
    pub parameters: String,
}

/// Where a kernel is; `None` if there is none of this name.
pub fn entry(_name: &str) -> Option<&'static Entry> {
    None
}

/// Each module's name and text.
pub fn modules() -> &'static [(&'static str, &'static str)] {
    &[]
}
