//! The throughputs as horizontal bars in SVG, one group per load.

use std::path::Path;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::Outcome;
use crate::report::Row;

const WIDTH: u32 = 900;
const BAR: i32 = 26;
const GAP: i32 = 34;
/// Where the bars begin, and the room for the longest.
const LEFT: i32 = 250;
const ROOM: i32 = 520;
const SERVICE: RGBColor = RGBColor(183, 65, 14);
const OTHERS: RGBColor = RGBColor(150, 160, 170);
const INK: RGBColor = RGBColor(60, 60, 60);

/// Draws the chart. Each group has its own scale: its longest bar has the full width.
pub fn draw(path: &Path, rows: &[Row]) -> Outcome<()> {
    let compared = rows
        .chunk_by(|one, next| one.load == next.load)
        .filter(|group| group.len() > 1);
    let groups: Vec<&[Row]> = compared.collect();
    let bars = groups.iter().map(|group| group.len()).sum::<usize>();
    let height = GAP + i32::try_from(bars)? * BAR + i32::try_from(groups.len())? * GAP;
    let area = SVGBackend::new(path, (WIDTH, height.unsigned_abs())).into_drawing_area();
    area.fill(&WHITE)?;
    let style = |size: i32, color: &RGBColor, side: HPos| {
        ("sans-serif", size)
            .into_font()
            .color(color)
            .pos(Pos::new(side, VPos::Center))
    };
    let mut top = GAP / 2;
    for group in groups {
        let longest = group
            .iter()
            .map(|row| row.median.throughput)
            .fold(f64::MIN_POSITIVE, f64::max);
        let heading = format!("{} (a second)", group[0].load);
        area.draw_text(
            &heading,
            &style(15, &BLACK, HPos::Left),
            (16, top + GAP / 2),
        )?;
        top += GAP;
        for row in group {
            #[expect(clippy::cast_possible_truncation, reason = "a fraction of ROOM")]
            let right = LEFT + (f64::from(ROOM) * row.median.throughput / longest) as i32;
            let color = if row.candidate.starts_with("the service") {
                SERVICE
            } else {
                OTHERS
            };
            let middle = top + BAR / 2;
            area.draw(&Rectangle::new(
                [(LEFT, top + 3), (right, top + BAR - 3)],
                color.filled(),
            ))?;
            area.draw_text(
                row.candidate,
                &style(14, &INK, HPos::Right),
                (LEFT - 10, middle),
            )?;
            let figure = format!("{:.0}", row.median.throughput);
            area.draw_text(&figure, &style(14, &INK, HPos::Left), (right + 8, middle))?;
            top += BAR;
        }
    }
    area.present()?;
    Ok(())
}
