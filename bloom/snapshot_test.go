package bloom

import (
	"encoding/binary"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
)

func filledFilter(tb testing.TB, n int) *Filter {
	tb.Helper()
	f := newTestFilter(tb, uint64(n))
	for i := range n {
		f.Add(strconv.Itoa(i))
	}
	return f
}

// A snapshot gives back the same filter: every key, every answer to absent keys, capacity and rate; and it can be added to.
func TestSnapshotRoundTrip(t *testing.T) {
	for _, n := range []int{1, 7, 5000} {
		f := filledFilter(t, n)
		g, err := ReadSnapshot(f.Snapshot())
		require.NoError(t, err)
		for i := range 3 * n {
			require.Equal(t, f.MayContain(strconv.Itoa(i)), g.MayContain(strconv.Itoa(i)), "n %d, key %d", n, i)
		}
		require.Equal(t, f.options, g.options)
		require.Equal(t, f.Stats(), g.Stats())
		g.Add("later")
		require.True(t, g.MayContain("later"))
		require.Equal(t, g.Snapshot(), g.Snapshot())
	}
}

// Every cut and every flipped bit is noticed: a damaged snapshot is an error, never a filter that calls rows absent.
func TestDamagedSnapshotIsAnError(t *testing.T) {
	data := filledFilter(t, 50).Snapshot()
	for n := range data {
		_, err := ReadSnapshot(data[:n])
		require.ErrorIs(t, err, ErrSnapshot, "cut to %d bytes", n)
	}
	_, err := ReadSnapshot(append(data[:len(data):len(data)], 0))
	require.ErrorIs(t, err, ErrSnapshot, "a byte too many")
	for bit := range 8 * len(data) {
		data[bit/8] ^= 1 << (bit % 8)
		_, err := ReadSnapshot(data)
		require.ErrorIs(t, err, ErrSnapshot, "bit %d flipped", bit)
		data[bit/8] ^= 1 << (bit % 8)
	}
	_, err = ReadSnapshot(data)
	require.NoError(t, err)
}

// A header that is wrong but carries a right checksum, as a later release or another program might write it, is refused without
// taking memory for what it claims.
func TestForeignSnapshotIsAnError(t *testing.T) {
	put := func(at int, v uint64) func([]byte) {
		return func(data []byte) { binary.BigEndian.PutUint64(data[at:], v) }
	}
	for name, change := range map[string]func([]byte){
		"later":       func(data []byte) { data[4]++ },
		"earlier":     func(data []byte) { data[4]-- },
		"no bits":     put(24, 0),
		"huge":        put(24, 1<<62),
		"more bits":   put(24, 1<<32),
		"no hashes":   put(32, 0),
		"many hashes": put(32, 1000),
		"capacity":    put(40, 0),
		"rate":        put(48, 0),
		"past end":    func(data []byte) { data[len(data)-1] |= 0x80 },
	} {
		data := filledFilter(t, 50).Snapshot()
		change(data)
		binary.BigEndian.PutUint64(data[checksumAt:], snapshotSum(data))
		_, err := ReadSnapshot(data)
		require.ErrorIs(t, err, ErrSnapshot, name)
	}
	data := append(filledFilter(t, 50).Snapshot(), 0)
	binary.BigEndian.PutUint64(data[checksumAt:], snapshotSum(data))
	_, err := ReadSnapshot(data)
	require.ErrorIs(t, err, ErrSnapshot, "longer than its header says")
	for _, data := range [][]byte{nil, {}, []byte("OK"), make([]byte, 4096)} {
		_, err := ReadSnapshot(data)
		require.ErrorIs(t, err, ErrSnapshot)
	}
}

// Whatever the bytes are, reading them neither panics nor gives a filter that cannot be asked, added to and written again.
func FuzzReadSnapshot(f *testing.F) {
	for _, n := range []int{1, 100} {
		data := filledFilter(f, n).Snapshot()
		f.Add(data)
		f.Add(data[:len(data)-3])
	}
	f.Add([]byte(snapshotMagic))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) >= snapshotHeader { // as if written by another program: past the checksum
			copied := append([]byte(nil), data...)
			binary.BigEndian.PutUint64(copied[checksumAt:], snapshotSum(copied))
			tryFilter(t, copied)
		}
		tryFilter(t, data)
	})
}

func tryFilter(t *testing.T, data []byte) {
	t.Helper()
	g, err := ReadSnapshot(data)
	if err != nil {
		require.ErrorIs(t, err, ErrSnapshot)
		require.Nil(t, g)
		return
	}
	g.MayContain("some key")
	g.Add("some key")
	require.True(t, g.MayContain("some key"))
	g.Stats()
	again, err := ReadSnapshot(g.Snapshot())
	require.NoError(t, err)
	require.True(t, again.MayContain("some key"))
}
