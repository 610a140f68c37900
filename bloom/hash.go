package bloom

import (
	"crypto/rand"
	"encoding/binary"
	mathbits "math/bits"
)

// seed is the secret of one filter: the key of its SipHash, and its identity. It travels in the snapshot and is never logged.
type seed struct{ a, b uint64 }

func newSeed() seed {
	var random [16]byte
	_, _ = rand.Read(random[:]) // never fails: crypto/rand ends the process instead
	return seed{binary.LittleEndian.Uint64(random[:8]), binary.LittleEndian.Uint64(random[8:])}
}

// sip is the state of SipHash (Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012).
type sip struct{ v0, v1, v2, v3 uint64 }

func (s sip) round() sip {
	s.v0 += s.v1
	s.v2 += s.v3
	s.v1 = mathbits.RotateLeft64(s.v1, 13) ^ s.v0
	s.v3 = mathbits.RotateLeft64(s.v3, 16) ^ s.v2
	s.v0 = mathbits.RotateLeft64(s.v0, 32)
	s.v2 += s.v1
	s.v0 += s.v3
	s.v1 = mathbits.RotateLeft64(s.v1, 17) ^ s.v2
	s.v3 = mathbits.RotateLeft64(s.v3, 21) ^ s.v0
	s.v2 = mathbits.RotateLeft64(s.v2, 32)
	return s
}

// word takes in eight bytes: two rounds each, the 2 of SipHash-2-4.
func (s sip) word(m uint64) sip {
	s.v3 ^= m
	s = s.round().round()
	s.v0 ^= m
	return s
}

// hash is SipHash-2-4 of key under the seed.
func (k seed) hash(key string) uint64 {
	s := sip{k.a ^ 0x736f6d6570736575, k.b ^ 0x646f72616e646f6d, k.a ^ 0x6c7967656e657261, k.b ^ 0x7465646279746573}
	last := uint64(len(key)) << 56
	for ; len(key) >= 8; key = key[8:] {
		s = s.word(uint64(key[0]) | uint64(key[1])<<8 | uint64(key[2])<<16 | uint64(key[3])<<24 |
			uint64(key[4])<<32 | uint64(key[5])<<40 | uint64(key[6])<<48 | uint64(key[7])<<56)
	}
	for i := range len(key) {
		last |= uint64(key[i]) << (8 * i)
	}
	s = s.word(last)
	s.v2 ^= 0xff
	s = s.round().round().round().round()
	return s.v0 ^ s.v1 ^ s.v2 ^ s.v3
}

// of is the hash of key that everything here works with: never 0, which the table of recent additions needs for itself. The two
// hashes that share 1 for it can only add a false positive.
func (k seed) of(key string) uint64 { return max(k.hash(key), 1) }

// place is where, of so many bits, the i-th of a key's bits lies whose hash is h: that of a filter in memory as that of a segment in Redis. The
// hash is as good as drawn, and bits-and-blooms would hash it once more, in a third of a check's time (docs/adr/0026).
//
// Each place is drawn anew from the hash. Double hashing would do for large filters; in small ones its pairs of equal steps raise the rate.
func place(h uint64, i int, bits uint64) uint64 {
	at, _ := mathbits.Mul64(mix(h+uint64(i+1)*0x9e3779b97f4a7c15), bits) //nolint:gosec // not negative
	return at
}

// mix is the output function of SplitMix64, and what it is given above its steps (Steele, Lea and Flood, "Fast splittable pseudorandom number
// generators", 2014).
func mix(z uint64) uint64 {
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}
