package layers

import (
	"errors"
	"fmt"

	"github.com/tiercache/tiercache/internal/rediskey"
)

// ErrKeyTooLong is returned for a key whose string form is longer than MaxKeyBytes. Nothing was asked or changed.
var ErrKeyTooLong = errors.New("layers: key too long")

const (
	// MaxKeyBytes is the greatest length of a key's string form. Chosen; not tuned.
	MaxKeyBytes = 8 << 10
	// longKey is the length beyond which a key stands in Redis as its hash; then the envelope carries it in full.
	longKey = rediskey.LongBytes
)

// valueKey returns the Redis key of id's value: <prefix>:<name>:{<key>}.
func (s *Space) valueKey(id string) (string, error) {
	if len(id) > MaxKeyBytes {
		return "", fmt.Errorf("%w: %d bytes, at most %d", ErrKeyTooLong, len(id), MaxKeyBytes)
	}
	return s.before + rediskey.Tag(id) + "}", nil
}

// guardKey returns the key of the guard of the value at key; it is in the same slot, since it has the same hash tag.
func guardKey(key string) string { return key + ":g" }
