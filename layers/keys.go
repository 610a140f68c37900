package layers

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
)

// ErrKeyTooLong is returned for a key whose string form is longer than MaxKeyBytes. Nothing was asked or changed.
var ErrKeyTooLong = errors.New("layers: key too long")

const (
	// MaxKeyBytes is the greatest length of a key's string form. Chosen; not tuned.
	MaxKeyBytes = 8 << 10
	// longKey is the length beyond which a key stands in Redis as its hash, so that keys stay small there. Chosen; not tuned.
	longKey = 200
)

// long reports whether the key id stands in Redis as its hash; then the envelope carries id in full.
func long(id string) bool { return len(id) > longKey }

// slotted returns the part of a Redis key that stands for id between the braces: percent-encoded, so that it holds no brace, colon or
// control byte and is never empty (an empty hash tag would put value and guard into different slots of a Cluster), or the hash of a long
// id. Different ids give different results, hashes aside: after a percent sign the encoding has a hexadecimal digit or nothing, the hash
// an "h".
func slotted(id string) string {
	switch {
	case id == "":
		return "%"
	case long(id):
		sum := sha256.Sum256([]byte(id))
		return "%h" + hex.EncodeToString(sum[:])
	}
	return escape(id)
}

// escape percent-encodes the bytes of s that could be taken for structure: % { } : and everything below 0x21 or equal to 0x7f.
// Other bytes, those beyond ASCII included, stay as they are.
func escape(s string) string {
	const digits = "0123456789ABCDEF"
	var b []byte
	done := 0 // s up to here is in b
	for i := range len(s) {
		if c := s[i]; special(c) {
			b = append(b, s[done:i]...)
			b = append(b, '%', digits[c>>4], digits[c&15])
			done = i + 1
		}
	}
	return string(append(b, s[done:]...))
}

func special(c byte) bool {
	return c < 0x21 || c == 0x7f || c == '%' || c == '{' || c == '}' || c == ':'
}

// valueKey returns the Redis key of id's value: <prefix>:<name>:{<key>}.
func (s *Space) valueKey(id string) (string, error) {
	if len(id) > MaxKeyBytes {
		return "", fmt.Errorf("%w: %d bytes, at most %d", ErrKeyTooLong, len(id), MaxKeyBytes)
	}
	if id == "" || long(id) || !plain(id) {
		return s.before + slotted(id) + "}", nil
	}
	return s.before + id + "}", nil // most keys: one allocation
}

// plain reports whether no byte of s needs to be escaped.
func plain(s string) bool {
	for i := range len(s) {
		if special(s[i]) {
			return false
		}
	}
	return true
}

// guardKey returns the key of the guard of the value at key; it is in the same slot, since it has the same hash tag.
func guardKey(key string) string { return key + ":g" }
