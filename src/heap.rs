//! The program's allocator: mimalloc, with an account of what is in use.

use std::alloc::{GlobalAlloc, Layout};

use bosphorus::metrics::heap::{allocated, freed};
use mimalloc::MiMalloc;

/// Mimalloc gives back what the program does not use; the system's allocator keeps for good what ten
/// thousand sessions needed at their busiest moment. What was asked for and not freed is counted in
/// `bosphorus_heap_live_bytes`, at the price of one addition to a counter that few threads share:
/// mimalloc's statistics are not kept in a release build.
pub(crate) struct Counting;

// A global allocator cannot be written otherwise. Every call is handed on as it came, so that what
// holds for mimalloc holds here; the counting neither allocates nor unwinds, and touches no block.
#[allow(unsafe_code, reason = "GlobalAlloc is an unsafe trait")]
// SAFETY: see above; each method returns what mimalloc's returns for the same arguments.
unsafe impl GlobalAlloc for Counting {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are those that mimalloc asks for, here and below.
        let block = unsafe { MiMalloc.alloc(layout) };
        if !block.is_null() {
            allocated(layout.size());
        }
        block
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        let block = unsafe { MiMalloc.alloc_zeroed(layout) };
        if !block.is_null() {
            allocated(layout.size());
        }
        block
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { MiMalloc.dealloc(block, layout) };
        freed(layout.size());
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        let moved = unsafe { MiMalloc.realloc(block, layout, size) };
        if !moved.is_null() {
            allocated(size);
            freed(layout.size());
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use bosphorus::metrics::heap::live;

    /// What is allocated, grown, and freed on another thread is counted; other tests of this binary
    /// allocate and free far less than this meanwhile.
    #[test]
    fn the_account_follows_what_is_in_use() {
        const MIB: usize = 1 << 20;
        let before = live();
        let mut block = Vec::<u8>::with_capacity(64 * MIB);
        let allocated = live() - before;
        assert!((62 * MIB..66 * MIB).contains(&allocated), "{allocated}");
        block.reserve_exact(96 * MIB);
        let zeroed = vec![0_u8; 32 * MIB];
        let grown = live() - before;
        assert!((126 * MIB..130 * MIB).contains(&grown), "{grown}");
        std::thread::spawn(move || drop((block, zeroed))).join().unwrap();
        assert!(live() < before + 2 * MIB);
    }
}
