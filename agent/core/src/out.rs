//! What a walk over one Pod's containers wants done and said, while the Pod is borrowed from the core.
//!
//! Always holds: everything that was gathered is handed over by [`crate::Core::take_out`], in its order.

use crate::effect::Effect;
use crate::machine::{Core, Now};

/// An event to be.
pub(crate) struct Said {
    pub(crate) container: String,
    pub(crate) warning: bool,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// The gathering.
#[derive(Default)]
pub(crate) struct Out {
    pub(crate) effects: Vec<Effect>,
    pub(crate) said: Vec<Said>,
    /// The Pod's status may have changed.
    pub(crate) changed: bool,
}

impl Out {
    pub(crate) fn warn(&mut self, container: &str, reason: &'static str, message: String) {
        self.say(container, true, reason, message);
    }

    pub(crate) fn tell(&mut self, container: &str, reason: &'static str, message: String) {
        self.say(container, false, reason, message);
    }

    fn say(&mut self, container: &str, warning: bool, reason: &'static str, message: String) {
        self.said.push(Said {
            container: container.to_owned(),
            warning,
            reason,
            message,
        });
    }
}

impl Core {
    /// Hands over what was gathered about a Pod.
    pub(crate) fn take_out(&mut self, now: Now, uid: skiff_protocol::uid::Uid, out: Out) {
        self.effects.extend(out.effects);
        for it in out.said {
            self.event(now, uid, Some(&it.container), it.warning, it.reason, it.message);
        }
        if out.changed {
            self.touch(now, uid);
        }
    }
}
