//! Tensors that follow a model's own, by name: averages and slow weights.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::{refuse, rows::check_real};
use crate::error::Result;
use crate::nn::{self, Module, Slot};
use crate::tensor::Tensor;

/// One tensor beside each parameter (and each buffer of floats, where asked for) of a model.
#[derive(Debug, Default)]
pub(super) struct Shadow(BTreeMap<String, Tensor>);

/// Whether a slot has a shadow.
pub(super) fn has_shadow<'a>(slot: Slot<'a>, buffers: bool) -> Option<&'a mut Tensor> {
    match slot {
        Slot::Parameter(t) => Some(t),
        Slot::Buffer(t) if buffers && t.dtype().is_float() => Some(t),
        _ => None,
    }
}

impl Shadow {
    /// The shadow of `x`, in its memory order; a copy of `x` where there was none.
    pub fn of(&mut self, op: &'static str, name: &str, x: &Tensor) -> Result<&mut Tensor> {
        match self.0.entry(name.into()) {
            Entry::Vacant(e) => {
                check_real(op, x)?;
                Ok(e.insert(copy(x)?))
            }
            Entry::Occupied(e) => {
                let y = e.into_mut();
                let order = x.layout().dense_like();
                if y.shape() == x.shape() && !y.layout().same_order(&order) {
                    *y = y.laid_out(order)?;
                }
                Ok(y)
            }
        }
    }

    /// The tensors by name.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Tensor)> {
        self.0.iter()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Copies of the tensors by name; `None` where there is none.
    pub fn copies(&self) -> Result<Option<Vec<(String, Tensor)>>> {
        if self.is_empty() {
            return Ok(None);
        }
        let copies = self.iter().map(|(n, t)| Ok((n.clone(), copy(t)?)));
        copies.collect::<Result<_>>().map(Some)
    }

    /// To be saved, `kind.name`.
    pub fn state(&self, kind: &str) -> Vec<(String, Tensor)> {
        let named = |(name, t): (&String, &Tensor)| (format!("{kind}.{name}"), t.clone());
        self.0.iter().map(named).collect()
    }

    /// The shadow that `state` holds as `kind.name` for all of `model`'s tensors or for none, and
    /// the other entries.
    pub fn load(
        kind: &str,
        model: &mut dyn Module,
        buffers: bool,
        state: &[(String, Tensor)],
    ) -> Result<(Self, Vec<(String, Tensor)>)> {
        let mut found = Shadow::default();
        let own = |name: &str| name.split_once('.').is_some_and(|(k, _)| k == kind);
        let (mine, others): (Vec<_>, Vec<_>) =
            state.iter().cloned().partition(|(name, _)| own(name));
        nn::try_visit(model, |name, slot| {
            let Some(p) = has_shadow(slot, buffers) else {
                return Ok(());
            };
            let full = format!("{kind}.{name}");
            match mine.iter().find(|(n, _)| *n == full) {
                None if mine.is_empty() => {}
                None => return Err(refuse(&full, "missing".into())),
                Some((_, t)) if t.shape() != p.shape() || t.dtype() != p.dtype() => {
                    return Err(refuse(&full, super::differs(t, p.dtype(), p.shape())));
                }
                Some((_, t)) => {
                    found.0.insert(name.into(), t.moved(p.device())?);
                }
            }
            Ok(())
        })?;
        let known = |name: &str| found.0.contains_key(&name[kind.len() + 1..]);
        match mine.iter().find(|(name, _)| !known(name)) {
            Some((name, _)) => Err(refuse(name, super::FOREIGN.into())),
            None => Ok((found, others)),
        }
    }
}

/// The same elements in memory that nobody else holds.
pub(super) fn copy(x: &Tensor) -> Result<Tensor> {
    let mut y = x.detach();
    y.make_unique()?;
    Ok(y)
}

/// A whole number that is saved beside the tensors, taken out of `state`.
pub(super) fn take_count(state: &mut Vec<(String, Tensor)>, name: &str) -> Result<u64> {
    let Some(at) = state.iter().position(|(n, _)| n == name) else {
        return Err(refuse(name, "missing".into()));
    };
    let (_, count) = state.remove(at);
    match count.to_vec::<i64>()?[..] {
        [count] if count >= 0 => Ok(count as u64),
        _ => Err(refuse(name, "is not one number of at least 0".into())),
    }
}
