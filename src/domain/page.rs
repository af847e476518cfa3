//! A page of a list, and its neighbours.

/// Most users in one page, and the default.
pub(crate) const MAX_LIMIT: i64 = 100;
/// Largest offset. The database reads all skipped rows; this many take a few milliseconds.
pub(crate) const MAX_OFFSET: i64 = 100_000;

/// A range of a list's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Page {
    /// 1..=[`MAX_LIMIT`]
    limit: i64,
    /// 0..=[`MAX_OFFSET`]
    offset: i64,
}

impl Page {
    /// `None` if either is out of range.
    pub fn new(limit: i64, offset: i64) -> Option<Self> {
        ((1..=MAX_LIMIT).contains(&limit) && (0..=MAX_OFFSET).contains(&offset))
            .then_some(Self { limit, offset })
    }

    pub const fn limit(self) -> i64 {
        self.limit
    }

    pub const fn offset(self) -> i64 {
        self.offset
    }

    pub fn first(self) -> Self {
        Self { offset: 0, ..self }
    }

    /// The last page of `total` rows, counted from offset 0; `None` past the largest offset.
    pub fn last(self, total: i64) -> Option<Self> {
        Self::new(self.limit, (total - 1).max(0) / self.limit * self.limit)
    }

    /// The previous page; the last one if this page is beyond the end. `None` at the start.
    pub fn previous(self, total: i64) -> Option<Self> {
        match self.offset {
            0 => None,
            beyond if beyond >= total => self.last(total),
            offset => Self::new(self.limit, (offset - self.limit).max(0)),
        }
    }

    /// The next page; `None` at the end, and past the largest offset.
    pub fn next(self, total: i64) -> Option<Self> {
        let offset = self.offset + self.limit;
        if offset < total {
            Self::new(self.limit, offset)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Page;

    fn page(limit: i64, offset: i64) -> Page {
        Page::new(limit, offset).unwrap()
    }

    #[test]
    fn a_middle_page_links_to_the_pages_next_to_it() {
        assert_eq!(page(2, 2).previous(5), Some(page(2, 0)));
        assert_eq!(page(2, 2).next(5), Some(page(2, 4)));
        assert_eq!(page(2, 2).last(5), Some(page(2, 4)));
    }

    #[test]
    fn the_first_page_has_no_previous_and_the_last_no_next() {
        assert_eq!(page(2, 0).previous(5), None);
        assert_eq!(page(2, 4).next(5), None);
        assert_eq!(page(5, 0).next(5), None);
        assert_eq!(page(100, 100_000).next(i64::MAX), None);
        assert_eq!(page(100, 0).last(i64::MAX), None);
    }

    #[test]
    fn a_page_beyond_the_end_leads_back_to_the_last() {
        assert_eq!(page(2, 100).previous(5), Some(page(2, 4)));
        assert_eq!(page(2, 100).previous(0), Some(page(2, 0)));
        assert_eq!(page(2, 0).last(0), Some(page(2, 0)));
    }

    #[test]
    fn an_offset_below_one_limit_leads_back_to_the_first_page() {
        assert_eq!(page(10, 3).previous(50), Some(page(10, 0)));
    }
}
