//! What takes servers that may be stopped, frozen and killed, and minutes: the slow rows of the fault matrix, one by one,
//! and then random faults under load. `./setup.sh chaos` runs both; what they have in common with the quick tests, and
//! the quick rows of the matrix, is in `tests/harness` and `tests/api`.

#![allow(clippy::cast_precision_loss, reason = "sizes and counts, to be printed")]

mod harness;

mod chaos {
    mod matrix;
    mod storm;
    mod trial;
}
