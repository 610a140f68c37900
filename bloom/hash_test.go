package bloom

import (
	"testing"

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
