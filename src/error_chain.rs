//! Formats an error and its sources on one line, for the place that handles it. Our errors' own
//! texts never repeat their sources. A leaf: imports no other module of the crate.

use std::error::Error;
use std::fmt;

pub(crate) struct Chain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last = self.0.to_string();
        f.write_str(&last)?;
        let mut next = self.0.source();
        while let Some(source) = next {
            let text = source.to_string();
            // Some libraries' errors repeat it.
            if !last.ends_with(&text) {
                write!(f, ": {text}")?;
                last = text;
            }
            next = source.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::Chain;

    #[derive(Debug, thiserror::Error)]
    enum Outer {
        #[error("outer")]
        Plain(#[source] io::Error),
        #[error("outer: {0}")]
        Repeating(#[source] io::Error),
    }

    #[test]
    fn a_chain_names_each_cause_once() {
        for outer in [
            Outer::Plain(io::Error::other("inner")),
            Outer::Repeating(io::Error::other("inner")),
        ] {
            assert_eq!(Chain(&outer).to_string(), "outer: inner");
        }
    }
}
