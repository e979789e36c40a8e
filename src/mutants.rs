//! Rules that look optional, each of which can be broken on purpose: that the model then finds a broken promise shows that
//! the rule is needed, and that the model can fail.
//!
//! Only with the cargo feature `mutants`, which nothing turns on by default. Without it `active` is false at compile time,
//! and what it guards, the names and the environment variable are not in the program. With it, `ASSURE_MUTANTS` names
//! the rules to break, and a file `stall-POINT` in the working folder holds the program up at that point for as many
//! milliseconds as it says, so that a race is run the same way each time. Stalls break no rule. A file `panic-POINT` makes
//! each request that comes to that point a defect of ours.

/// A rule to break.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mutant {
    /// What was cached before the store forgot is believed.
    SkipGeneration,
    /// `applied` is not looked at again after the look-up.
    SkipApplied,
    /// The tombstones are not asked when a fill lands.
    FillUntested,
    /// The tombstones are not asked once more before a request is sent; harmless by itself.
    NoLastLook,
    /// A lease counts from the answer, not from the sending.
    LeaseFromAnswer,
    /// A change is acknowledged when it has come, not when it has been applied.
    AckUnapplied,
    /// A replica that says nothing is not waited for.
    NoWaitForSilent,
    /// In strict mode an answer of before the request's arrival will do.
    AskEarlier,
    /// What was written down of revocations is not read at the start.
    NoLedger,
    /// A store that has forgotten revocations is not told of them.
    NoReassert,
    /// A store that has forgotten uses is not told of them.
    NoRecall,
    /// A store that was just met is trusted at once.
    TrustNewStore,
    /// Uses count from their grant's beginning.
    CountAtGrantStart,
    /// A grant that is not reported does not count.
    ForgetOpenGrants,
    /// A shipment is taken whatever the mark says.
    SkipDedupe,
    /// What was in progress when the process died is not closed at the next start.
    NoUnknownEnd,
    /// Nothing is written down before a request is forwarded.
    NoBegin,
    /// One live key more than a creator may have.
    OneKeyMore,
    /// Frames of HTTP/2 that carry nothing are not counted; `floods` finds it, not the model.
    NoFrameBudget,
}

#[cfg(not(feature = "mutants"))]
mod switch {
    use super::Mutant;

    /// Nothing is ever broken.
    pub const fn active(_: Mutant) -> bool {
        false
    }

    /// The script as it is.
    pub(crate) fn script(text: String) -> String {
        text
    }

    /// Nothing is ever held up.
    pub(crate) async fn stall(_: &str) {}

    /// Nothing ever panics on purpose.
    pub(crate) const fn trip(_: &str) {}
}

#[cfg(feature = "mutants")]
mod switch {
    use std::sync::LazyLock;
    use std::time::Duration;

    use super::Mutant;

    /// Names in the manner of `SkipGeneration`, separated by commas.
    static NAMED: LazyLock<Vec<String>> = LazyLock::new(|| {
        let named: Vec<String> = std::env::var("ASSURE_MUTANTS").unwrap_or_default().split(',').map(str::to_owned).collect();
        tracing::error!(?named, "this program breaks its rules on purpose");
        named
    });

    /// What a mutant changes in a script of the store.
    const SCRIPTS: [(Mutant, &str, &str); 2] = [
        (Mutant::SkipDedupe, "if last > mark then", "if true then"),
        (Mutant::OneKeyMore, "redis.call('SCARD', KEYS[5]) >=", "redis.call('SCARD', KEYS[5]) >"),
    ];

    /// Whether this rule is broken.
    pub fn active(mutant: Mutant) -> bool {
        NAMED.contains(&format!("{mutant:?}"))
    }

    /// The script as the mutant has it.
    pub(crate) fn script(text: String) -> String {
        SCRIPTS.iter().filter(|(mutant, ..)| active(*mutant)).fold(text, |text, (_, rule, broken)| text.replace(rule, broken))
    }

    /// Waits if a file says so.
    pub(crate) async fn stall(point: &str) {
        let wait = std::fs::read_to_string(format!("stall-{point}")).ok().and_then(|text| text.trim().parse().ok());
        if let Some(wait) = wait {
            tokio::time::sleep(Duration::from_millis(wait)).await;
        }
    }

    /// Panics if a file says so.
    pub(crate) fn trip(point: &str) {
        assert!(!std::fs::exists(format!("panic-{point}")).unwrap_or(false), "on purpose, at {point}");
    }
}

pub use switch::active;
pub(crate) use switch::{script, stall, trip};
