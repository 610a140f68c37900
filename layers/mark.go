package layers

// Mark is a moment in a key's local history. A value whose reading began under a mark is kept in memory only if the mark still
// stands when it is put: no invalidation of the key (or of a neighbour on its stripe, which refuses needlessly but harmlessly) was
// heard since, and no gap of the bus.
//
// Two equal marks of one key are the same moment: what was read under one may be given to who holds the other.
type Mark struct {
	epoch uint64 // of the key's stripe: moved by every invalidation on it
	trust uint64 // of the cache: moved by gaps of the bus and by Clear
}
