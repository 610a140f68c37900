package bloom

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc64"
	"math"
	mathbits "math/bits"

	"github.com/bits-and-blooms/bloom/v3"
)

// A snapshot, big-endian but for the words:
//
//	0  magic "tcbf"      8 seed, 16 bytes     32 hashes a key    48 rate, a float64's bits
//	4  version           24 bits              40 capacity        56 CRC-64 (ECMA) of all other bytes
//	5  zero              64 the bits as words, little-endian
const (
	snapshotMagic   = "tcbf"
	snapshotVersion = 2 // 1 had a key's bits elsewhere
	snapshotHeader  = 64
	checksumAt      = 56
)

var checksumTable = crc64.MakeTable(crc64.ECMA)

// ErrSnapshot is what reading data that is no whole, undamaged snapshot of a version known here fails with. The filter it was
// meant for must be treated as unknown, never as empty.
var ErrSnapshot = errors.New("bloom: not a usable snapshot")

func badSnapshot(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrSnapshot, fmt.Sprintf(format, args...))
}

// Snapshot returns f as bytes that [ReadSnapshot] reads, with everything added before the call. They hold the secret that makes
// false positives unpredictable: keep them where the keys themselves might be kept.
func (f *Filter) Snapshot() []byte {
	data := encode(f.options, f.seed, f.merged().base, 0)
	seal(data)
	return data
}

// encode is a snapshot without its checksum, with room for so many bytes more.
func encode(o Options, k seed, base *bloom.BloomFilter, more int) []byte {
	words := base.BitSet().Words()
	data := make([]byte, snapshotHeader+8*len(words), snapshotHeader+8*len(words)+more)
	copy(data, snapshotMagic)
	data[4] = snapshotVersion
	head := data[8:snapshotHeader]
	for i, v := range []uint64{k.a, k.b, uint64(base.Cap()), uint64(base.K()), o.Capacity, math.Float64bits(o.FalsePositiveRate)} {
		binary.BigEndian.PutUint64(head[8*i:], v)
	}
	for i, w := range words {
		binary.LittleEndian.PutUint64(data[snapshotHeader+8*i:], w)
	}
	return data
}

// seal puts the checksum into a snapshot.
func seal(data []byte) { binary.BigEndian.PutUint64(data[checksumAt:], snapshotSum(data)) }

func snapshotSum(data []byte) uint64 {
	return crc64.Update(crc64.Checksum(data[:checksumAt], checksumTable), checksumTable, data[snapshotHeader:])
}

// snapshotSeed returns whose snapshot data is, without looking whether it is whole.
func snapshotSeed(data []byte) (seed, bool) {
	if len(data) < snapshotHeader || string(data[:4]) != snapshotMagic {
		return seed{}, false
	}
	return seed{binary.BigEndian.Uint64(data[8:]), binary.BigEndian.Uint64(data[16:])}, true
}

// ReadSnapshot returns the filter that data was taken of, with the capacity and rate it had. Every error matches ErrSnapshot.
// Memory is taken only once data's own length and checksum have been found right. It does not keep data.
func ReadSnapshot(data []byte) (*Filter, error) {
	s, ok := snapshotSeed(data)
	switch {
	case !ok:
		return nil, badSnapshot("%d bytes without its header", len(data))
	case data[4] != snapshotVersion:
		return nil, badSnapshot("version %d, known is %d", data[4], snapshotVersion)
	}
	m, k := binary.BigEndian.Uint64(data[24:]), binary.BigEndian.Uint64(data[32:])
	o := Options{Capacity: binary.BigEndian.Uint64(data[40:]), FalsePositiveRate: math.Float64frombits(binary.BigEndian.Uint64(data[48:]))}
	if m == 0 || m > (maxBytes+8)*8 || k == 0 || k > maxHashes {
		return nil, badSnapshot("%d bits, %d hashes a key", m, k)
	}
	count := (m + 63) / 64
	if want := snapshotHeader + 8*count; uint64(len(data)) != want {
		return nil, badSnapshot("%d bytes, %d by its header", len(data), want)
	}
	if sum := snapshotSum(data); sum != binary.BigEndian.Uint64(data[checksumAt:]) {
		return nil, badSnapshot("checksum does not match")
	}
	if _, err := o.check(); err != nil || o.FalsePositiveRate == 0 {
		return nil, badSnapshot("made with wrong options (%v)", err)
	}
	bits, ones := bloom.New(uint(m), uint(k)), 0
	words := bits.BitSet().Words()
	for i := range words {
		words[i] = binary.LittleEndian.Uint64(data[snapshotHeader+8*i:])
		ones += mathbits.OnesCount64(words[i])
	}
	if m%64 != 0 && words[count-1]>>(m%64) != 0 {
		return nil, badSnapshot("bits set past its end")
	}
	return newFilter(o, s, bits, uint64(ones)), nil
}
