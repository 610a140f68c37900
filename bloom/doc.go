// Package bloom has the filter that keeps requests for rows which do not exist away from the source.
//
// [Filter] is a set of keys that may say "perhaps" of a key it never saw, but never "no" of one that was added. It is usable on its own.
//
// [Guard] is a filter's life in a fleet of processes: built from a scan of the source while announcements of new rows go on, stored
// for the other processes, brought up to date from the announcements' stream. Its one rule: a filter that is not built, behind,
// damaged or of unknown origin lets everything pass. "Absent" is said only by a structure that is not in doubt.
//
// [Segmented] is the layout of a filter whose bits are in Redis, for key sets too big for every process: which bits a key has, and what
// Redis' answer means. A segment that is missing, incomplete, damaged or another filter's means unknown, never absent. It does no network.
//
// [SharedGuard] is the life of such a filter: built while announcements go on, moved to, asked, renewed. No process holds its bits.
//
// # Why readers need no lock
//
// The bits of a published filter never change. What was added since stands in a small table of keyed hashes next to it; when the
// table is full, bits and table are merged into a fresh copy, and one atomic pointer moves to it. Who reads the older pair sees
// everything that was added before it looked. The cost of the copy is spread over the additions that filled the table.
//
// # Why the library's hash is not used
//
// It has no seed: over public ids anyone can compute, away from the system, keys that a filter lets pass. So a key is hashed with SipHash-2-4
// under a random secret that every filter draws anew, and that hash says where its bits are (docs/adr/0026). Two keys with one 64-bit
// hash are one key to the filter: that adds fewer than one false positive in 10^10 requests at a billion keys, and never a false negative.
package bloom
