//! Training: what a run leaves behind (history, curves, pictures), what it shows on the way, and
//! what a look at it from the side finds.

pub mod ablation;
pub mod amp;
pub mod checkpoint;
mod confusion;
pub mod events;
mod gallery;
pub mod history;
mod judge;
pub mod l2;
pub mod landscape;
pub mod loss;
pub mod observer;
pub mod picture;
pub mod plot;
mod predictor;
pub mod pretrain;
pub mod progress;
pub mod recipe;
mod redraw;
pub mod report;
pub mod run;
pub mod sanity;
pub mod solver;
pub mod statistics;
mod step;
mod tta;
mod update_rule;

pub use crate::files;

pub use ablation::{Ablation, Cell, CellResult, Ended};
pub use amp::{GradScaler, LossScale, Precision};
pub use checkpoint::{
    Checkpoint, load_state_dict_file, load_state_dict_file_partly, save_state_dict,
};
pub use confusion::Confusion;
pub use events::save_events;
pub use gallery::{check_count, save_predictions};
pub use history::History;
pub use judge::check_accuracy;
pub use landscape::{Landscape, Probe, ProbeConfig, ProbePoint, along_gradient};
pub use loss::{Loss, LossFn, softmax_loss};
pub use observer::{Observer, StepView};
pub use picture::{save_filters, save_grid};
pub use plot::{Plot, Series, save_comparison, save_curves};
pub use predictor::{Input, Predictor, Sample};
pub use pretrain::Pretrain;
pub use progress::Progress;
pub use recipe::{DataRecipe, ModelRecipe, Recipe, Scale};
pub use redraw::redraw;
pub use run::{Judged, Meters, Run, stop_on_signal};
pub use sanity::{SanityConfig, SanityReport, sanity_checks};
pub use solver::{Outcome, Solver, SolverConfig, SolverData};
pub use statistics::{Diary, LayerStatistics, Moments, Statistics};
pub use tta::{View, predict, tta_accuracy};
pub use update_rule::{OptimConfig, UpdateRule};
