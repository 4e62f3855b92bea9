//! What depends on a frame's length only, remembered for frames whose lengths recur.

/// A small cache by frame length and grid exponent.
///
/// A value is made when its key is asked for the second time: sliding frames ask for one or a few lengths over and
/// over, growing ones never for the same again.
#[derive(Clone, Debug)]
pub struct PerLength<C> {
    slots: Vec<Slot<C>>,
    asked: bool,
}

#[derive(Clone, Debug)]
struct Slot<C> {
    key: (usize, i32),
    value: Option<Box<C>>,
}

impl<C> Default for PerLength<C> {
    fn default() -> Self {
        PerLength { slots: Vec::new(), asked: false }
    }
}

impl<C> PerLength<C> {
    /// Lengths that recur within a time-based frame differ by about this much.
    const SLOTS: usize = 32;

    /// The value for a length and an exponent, if it is worth having.
    #[inline]
    pub fn get(&mut self, len: usize, exponent: i32, make: impl FnOnce() -> C) -> Option<&C> {
        if !self.asked {
            self.asked = true;
            return None;
        }
        if self.slots.is_empty() {
            self.slots.extend((0..Self::SLOTS).map(|_| Slot { key: (0, 0), value: None }));
        }
        let slot = &mut self.slots[len % Self::SLOTS];
        if slot.key != (len, exponent) {
            *slot = Slot { key: (len, exponent), value: None };
            return None;
        }
        Some(slot.value.get_or_insert_with(|| Box::new(make())))
    }
}
