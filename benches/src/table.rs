//! Taking turns, and the table: medians beside goals.

use std::time::Duration;

use anyhow::{Context, Result};
use shifter_tests::report;

/// Rounds before those that count: caches fill, peers are proved to work.
const WARM_UP: usize = 2;

/// What a figure should be.
#[derive(Clone, Copy)]
pub enum Goal {
    /// Something to compare with.
    None,
    /// At most so many times the median of the case of that name.
    Times(f64, &'static str),
    /// At most so much more than the case of that name.
    More(f64, &'static str),
    /// At most so much more or less than the case of that name.
    Within(f64, &'static str),
    /// At most so much.
    Most(f64),
}

/// Something to be measured.
pub struct Case<'a> {
    name: String,
    goals: Vec<Goal>,
    measure: Box<dyn FnMut() -> Result<f64> + 'a>,
}

impl<'a> Case<'a> {
    /// Makes a case that returns a figure.
    pub fn figure(name: impl Into<String>, measure: impl FnMut() -> Result<f64> + 'a) -> Self {
        Self {
            name: name.into(),
            goals: Vec::new(),
            measure: Box::new(measure),
        }
    }

    /// Makes a case that returns a time, which is shown in milliseconds.
    pub fn timed(name: impl Into<String>, mut time: impl FnMut() -> Result<Duration> + 'a) -> Self {
        Self::figure(name, move || Ok(time()?.as_secs_f64() * 1e3))
    }

    /// Says what the figure should be; for each further goal the case has a row more.
    pub fn goal(mut self, goal: Goal) -> Self {
        self.goals.push(goal);
        self
    }
}

/// What came of a case.
pub struct Row {
    name: String,
    goal: Goal,
    /// In the order of the rounds, and of size once the row is shown.
    figures: Vec<f64>,
    /// Median and minimum of the case that the goal names.
    other: Option<(f64, f64)>,
    /// By how much it is more than that case, round by round, in order of size.
    differences: Vec<f64>,
    /// The title of the table it is in.
    title: String,
}

/// What stands above a table.
#[derive(Clone, Copy)]
pub struct Heading<'a> {
    /// What is measured.
    pub title: &'a str,
    /// The unit of the figures.
    pub unit: &'a str,
    /// The case beside which all others are shown.
    pub base: &'a str,
}

/// Measures all cases in turns, prints them, and returns those that have goals.
pub fn compare(heading: Heading<'_>, mut cases: Vec<Case<'_>>, rounds: usize) -> Result<Vec<Row>> {
    let mut figures = vec![Vec::new(); cases.len()];
    let mut chance = Chance::default();
    for round in 0..rounds + WARM_UP {
        let mut turns: Vec<_> = cases.iter_mut().zip(&mut figures).collect();
        // So that no case always comes after the same other one.
        chance.shuffle(&mut turns);
        for (case, figures) in turns {
            let figure = (case.measure)().with_context(|| case.name.clone())?;
            if round >= WARM_UP {
                figures.push(figure);
            }
        }
    }
    let mut rows = Vec::new();
    for (case, figures) in cases.iter().zip(figures) {
        let goals = match &case.goals[..] {
            [] => &[Goal::None],
            goals => goals,
        };
        for goal in goals {
            rows.push(row(&case.name, *goal, figures.clone()));
        }
    }
    Ok(finish(heading, rows))
}

/// Makes a row of figures that were taken elsewhere.
pub fn row(name: &str, goal: Goal, figures: Vec<f64>) -> Row {
    Row {
        name: name.to_owned(),
        goal,
        figures,
        other: None,
        differences: Vec::new(),
        title: String::new(),
    }
}

/// Prints rows as a table, and returns those that have goals.
pub fn finish(heading: Heading<'_>, mut rows: Vec<Row>) -> Vec<Row> {
    relate(&mut rows);
    let base = rows.iter().find(|row| row.name == heading.base);
    let base = base.map_or(f64::NAN, Row::median);
    let unit = heading.unit;
    report::line(&format!(
        "
{}
",
        heading.title
    ));
    if base.is_finite() {
        report::line(&format!("× is beside '{}'", heading.base));
    }
    report::line(&columns([
        "case",
        &format!("median {unit}"),
        "min",
        "p90",
        "×",
        "goal",
        "verdict",
    ]));
    for row in &rows {
        report::line(&row.text(base));
    }
    rows.retain(|row| !matches!(row.goal, Goal::None));
    for row in &mut rows {
        row.title = heading.title.to_owned();
    }
    rows
}

/// Puts the figures of each row in order and beside it what its goal names.
fn relate(rows: &mut [Row]) {
    for at in 0..rows.len() {
        if let Goal::More(_, name) | Goal::Within(_, name) = rows[at].goal
            && let Some(other) = rows.iter().find(|row| row.name == name)
        {
            let pairs = rows[at].figures.iter().zip(&other.figures);
            let mut differences: Vec<f64> = pairs.map(|(own, other)| own - other).collect();
            differences.sort_by(f64::total_cmp);
            rows[at].differences = differences;
        }
    }
    for row in &mut *rows {
        row.figures.sort_by(f64::total_cmp);
    }
    for at in 0..rows.len() {
        if let Goal::Times(_, name) | Goal::More(_, name) | Goal::Within(_, name) = rows[at].goal {
            let other = rows.iter().find(|row| row.name == name);
            rows[at].other = other.map(|row| (row.median(), row.at(0.0)));
        }
    }
}

/// Orders that nothing the machine does keeps step with, the same in every run.
struct Chance(u64);

impl Default for Chance {
    fn default() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }
}

impl Chance {
    fn shuffle<T>(&mut self, turns: &mut [T]) {
        for end in (2..=turns.len()).rev() {
            // Marsaglia's xorshift.
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            turns.swap(end - 1, (self.0 % end as u64) as usize);
        }
    }
}

fn columns([name, median, min, p90, times, goal, verdict]: [&str; 7]) -> String {
    let line =
        format!("{name:<52} {median:>10} {min:>8} {p90:>8} {times:>6}  {goal:<36} {verdict}");
    line.trim_end().to_owned()
}

/// Prints the goals again, and how many were missed.
pub fn verdicts(rows: &[Row]) {
    report::line("\nAll goals");
    let mut title = "";
    for row in rows {
        if row.title != title {
            title = &row.title;
            report::line(&format!("\n{title}"));
        }
        report::line(&row.text(f64::NAN));
    }
    let missed = rows.iter().filter(|row| !row.is_met()).count();
    report::line(&format!("\n{missed} of {} goals missed", rows.len()));
}

impl Row {
    fn median(&self) -> f64 {
        self.at(0.5)
    }

    fn at(&self, part: f64) -> f64 {
        at(&self.figures, part)
    }

    /// The median of what it is more than the other case in the same round. What the machine does
    /// meanwhile lasts longer than a round, so it is in both; the medians of each differ by it.
    fn difference(&self) -> f64 {
        at(&self.differences, 0.5)
    }

    /// Between which two of the differences their true median lies in 19 of 20 runs, whatever their
    /// distribution (the sign test's interval).
    fn interval(&self) -> (f64, f64) {
        // As if there were one: then it is NaN.
        let count = self.differences.len().max(1) as f64;
        let reach = 0.98 / count.sqrt();
        let part = |part: f64| at(&self.differences, part.clamp(0.0, 1.0 - 1.0 / count));
        (part(0.5 - reach), part(0.5 + reach))
    }

    /// A goal whose other case could not be measured is not met.
    fn is_met(&self) -> bool {
        let median = self.median();
        match (self.goal, self.other) {
            (Goal::None, _) => true,
            (Goal::Times(most, _), Some((other, _))) => median <= most * other,
            (Goal::More(most, _), Some(_)) => self.difference() <= most,
            (Goal::Within(most, _), Some(_)) => self.difference().abs() <= most,
            (Goal::Most(most), _) => median <= most,
            (Goal::Times(..) | Goal::More(..) | Goal::Within(..), None) => false,
        }
    }

    fn text(&self, base: f64) -> String {
        let median = self.median();
        let goal = match self.goal {
            Goal::None => String::new(),
            Goal::Times(most, name) => format!("≤ {most} × {name}"),
            Goal::More(most, name) => format!("≤ {most} + {name}"),
            Goal::Within(most, name) => format!("± {most} of {name}"),
            Goal::Most(most) => format!("≤ {most}"),
        };
        // Noise only ever adds: minima are what a busy machine disturbs least.
        let found = match (self.goal, self.other) {
            (Goal::Times(..), Some((other, least))) => {
                let best = self.at(0.0) / least;
                format!("{:.2} ×, minima {best:.2} ×", median / other)
            }
            (Goal::More(..) | Goal::Within(..), Some((other, least))) => {
                let best = self.at(0.0) - least;
                let (low, high) = self.interval();
                let pairs = self.difference();
                format!(
                    "{pairs:+.2} in pairs ({low:+.2} to {high:+.2}), medians {:+.2}, minima {best:+.2}",
                    median - other
                )
            }
            (Goal::Times(..) | Goal::More(..) | Goal::Within(..), None) => {
                "nothing to compare with".into()
            }
            (Goal::None | Goal::Most(_), _) => String::new(),
        };
        let verdict = match (self.goal, self.is_met()) {
            (Goal::None, _) => "",
            (_, true) => "met   ",
            (_, false) => "MISSED",
        };
        let ratio = median / base;
        columns([
            &self.name,
            &format!("{median:.2}"),
            &format!("{:.2}", self.at(0.0)),
            &format!("{:.2}", self.at(0.9)),
            &if ratio.is_finite() {
                format!("{ratio:.2}")
            } else {
                String::new()
            },
            &goal,
            &format!("{verdict} {found}"),
        ])
    }
}

/// Returns the figure below which this part of them lies.
fn at(figures: &[f64], part: f64) -> f64 {
    let at = (figures.len() as f64 * part) as usize;
    figures.get(at).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(goal: Goal, other: Option<f64>, figures: &[f64]) -> bool {
        let mut rows = vec![row("x", goal, figures.to_vec())];
        rows.extend(other.map(|other| row("y", Goal::None, vec![other; figures.len()])));
        relate(&mut rows);
        rows[0].is_met()
    }

    #[test]
    fn goals_are_judged_by_the_median() {
        let figures = [9.0, 1.0, 2.0];
        assert!(judged(Goal::Most(2.0), None, &figures));
        assert!(!judged(Goal::Most(1.9), None, &figures));
        assert!(judged(Goal::Times(1.1, "y"), Some(2.0), &figures));
        assert!(!judged(Goal::Times(1.1, "y"), Some(1.8), &figures));
        assert!(judged(Goal::More(1.0, "y"), Some(1.0), &figures));
        assert!(judged(Goal::More(1.0, "y"), Some(9.0), &figures));
        assert!(!judged(Goal::More(0.9, "y"), Some(1.0), &figures));
        assert!(judged(Goal::Within(1.0, "y"), Some(3.0), &figures));
        assert!(!judged(Goal::Within(1.0, "y"), Some(3.1), &figures));
    }

    #[test]
    fn goal_beside_something_unmeasured_is_missed() {
        assert!(!judged(Goal::Times(1.1, "y"), None, &[1.0]));
        assert!(!judged(Goal::More(1.0, "y"), None, &[1.0]));
        assert!(!judged(Goal::Within(1.0, "y"), None, &[1.0]));
    }

    #[test]
    fn case_has_a_row_for_each_goal() {
        let heading = Heading {
            title: "x",
            unit: "",
            base: "",
        };
        let goals = [Goal::Most(1.0), Goal::Most(3.0)];
        let case = goals
            .into_iter()
            .fold(Case::figure("x", || Ok(2.0)), Case::goal);
        let rows = compare(heading, vec![case, Case::figure("y", || Ok(1.0))], 1).unwrap();
        let met: Vec<bool> = rows.iter().map(Row::is_met).collect();
        assert_eq!(met, [false, true]);
    }

    #[test]
    fn more_is_judged_in_pairs() {
        // A machine that gets slower: each pair differs by 1, the medians of either order by more.
        let base: Vec<f64> = (0..40).map(f64::from).collect();
        let figures = base.iter().map(|figure| figure + 1.0).collect();
        let mut rows = vec![row("x", Goal::More(1.0, "y"), figures)];
        rows.push(row("y", Goal::None, base));
        relate(&mut rows);
        assert!(rows[0].is_met());
        assert_eq!(
            (rows[0].difference(), rows[0].interval()),
            (1.0, (1.0, 1.0))
        );
    }

    #[test]
    fn intervals_hold_the_median_and_widen_with_the_spread() {
        let of = |figures: &[f64]| {
            let mut rows = vec![row("x", Goal::More(1.0, "y"), figures.to_vec())];
            rows.push(row("y", Goal::None, vec![0.0; figures.len()]));
            relate(&mut rows);
            rows[0].interval()
        };
        let figures: Vec<f64> = (0..100).map(f64::from).collect();
        assert_eq!(of(&figures), (40.0, 59.0));
        assert_eq!(of(&[3.0]), (3.0, 3.0));
        assert_eq!(of(&[5.0, 1.0, 3.0]), (1.0, 5.0));
    }

    #[test]
    fn every_case_has_each_turn_at_times() {
        let mut chance = Chance::default();
        let mut seen = [[0; 3]; 3];
        for _ in 0..300 {
            let mut turns = [0, 1, 2];
            chance.shuffle(&mut turns);
            turns
                .iter()
                .enumerate()
                .for_each(|(at, case)| seen[*case][at] += 1);
        }
        assert!(seen.iter().flatten().all(|count| *count > 60), "{seen:?}");
    }

    #[test]
    fn percentiles_of_few_figures_are_figures() {
        let few = row("x", Goal::None, vec![1.0]);
        assert_eq!((few.at(0.0), few.median(), few.at(0.9)), (1.0, 1.0, 1.0));
    }
}
