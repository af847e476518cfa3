//! Tests that take minutes, and servers that may be stopped, frozen and killed: the slow rows of
//! the fault matrix, then random faults under load. `./setup.sh chaos` runs both. The quick rows of
//! the matrix are in `tests/api`.

#![allow(
    clippy::cast_precision_loss,
    reason = "sizes and counts, to be printed"
)]

mod chaos {
    mod matrix;
    mod siege;
    mod storm;
    mod trial;
}
