//! Training: what a run leaves behind (history, curves, pictures) and what it shows on the way.

pub mod checkpoint;
pub mod files;
pub mod history;
pub mod picture;
pub mod plot;
pub mod progress;
pub mod sanity;
pub mod solver;
mod step;

pub use checkpoint::{Checkpoint, load_state_dict_file, save_state_dict};
pub use history::History;
pub use picture::save_grid;
pub use plot::{Plot, Series, save_curves};
pub use progress::Progress;
pub use sanity::{SanityConfig, SanityReport, sanity_checks};
pub use solver::{LossFn, OptimConfig, Outcome, Solver, SolverConfig, SolverData, UpdateRule};
