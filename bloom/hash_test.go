package bloom

import (
	"strconv"
	"testing"

	"github.com/bits-and-blooms/bloom/v3"
	"github.com/stretchr/testify/require"
)

// The hash is SipHash-2-4: the paper's own example and the ends of its authors' list of vectors (key 00 01 … 0f, message 00 01 …).
func TestHashIsSipHash24(t *testing.T) {
	key := seed{0x0706050403020100, 0x0f0e0d0c0b0a0908}
	message := make([]byte, 15)
	for i := range message {
		message[i] = byte(i)
	}
	require.Equal(t, uint64(0xa129ca6149be45e5), key.hash(string(message)), "15 bytes")
	require.Equal(t, uint64(0x726fdb47dd0e0e31), key.hash(""), "no bytes")
	require.Equal(t, uint64(0x74f839c593dc67fd), key.hash(string(message[:1])), "1 byte")
	require.Equal(t, uint64(0x93f5f5799a932462), key.hash(string(message[:8])), "8 bytes")
}

// Two filters never share a secret, so that keys which one lets pass by mistake tell nothing about another.
func TestEveryFilterDrawsItsOwnSecret(t *testing.T) {
	a, err := New(Options{Capacity: 10})
	require.NoError(t, err)
	b, err := New(Options{Capacity: 10})
	require.NoError(t, err)
	require.NotEqual(t, a.seed, b.seed)
	require.NotEqual(t, a.seed.of("key"), b.seed.of("key"))
}

// Where a key's bits are is part of what Redis holds: a release that puts them elsewhere takes another snapshotVersion, and another of a layout.
func TestPlacesOfAKeyStay(t *testing.T) {
	h := seed{1, 2}.of("row")
	places := make([]uint64, 7)
	for i := range places {
		places[i] = place(h, i, 1000)
	}
	require.Equal(t, []uint64{869, 592, 9, 377, 753, 394, 83}, places)
	f := newFilter(Options{Capacity: 1000, FalsePositiveRate: 0.01}, seed{1, 2}, bloom.New(1000, 7), 0)
	f.Add("row")
	var set []uint64
	for at, ok := f.merged().base.BitSet().NextSet(0); ok; at, ok = f.merged().base.BitSet().NextSet(at + 1) {
		set = append(set, uint64(at))
	}
	require.ElementsMatch(t, places, set)
	require.Equal(t, 2, snapshotVersion)
}

// A small filter passes hardly more absent keys than asked for: its few places are drawn each for itself. With double hashing, and the same seeds, it
// is 2.1 % of 1.
// Broken by: double hashing in place.
func TestSmallFilterPassesAboutAsManyAsAsked(t *testing.T) {
	const filters, rows, probes = 2000, 4, 500
	o := Options{Capacity: rows, FalsePositiveRate: 0.01}
	passed := 0
	for i := range filters {
		f := newFilter(o, seed{uint64(i), 1}, o.bits(), 0)
		for row := range rows {
			f.Add("row " + strconv.Itoa(row))
		}
		f.merged()
		for probe := range probes {
			if f.MayContain("none " + strconv.Itoa(probe)) {
				passed++
			}
		}
	}
	require.InDelta(t, 0.01, float64(passed)/(filters*probes), 0.004)
}
