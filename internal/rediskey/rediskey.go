// Package rediskey writes strings of any bytes into names of Redis keys, so that no string can be taken for another or for the name's structure.
package rediskey

import (
	"crypto/sha256"
	"encoding/hex"
)

// LongBytes is the length beyond which a string stands in a key as its hash, so that keys stay small in Redis. Chosen; not tuned.
const LongBytes = 200

// Long reports whether id stands in a key as its hash.
func Long(id string) bool { return len(id) > LongBytes }

// Tag returns the part of a Redis key that stands for id between the braces: percent-encoded, so that it holds no brace, colon or
// control byte and is never empty (with an empty hash tag, keys of one id would lie in different slots of a Cluster), or the hash of a long
// id. Different ids give different results, hashes aside: after a percent sign the encoding has a hexadecimal digit or nothing, the hash
// an "h".
func Tag(id string) string {
	switch {
	case id == "":
		return "%"
	case Long(id):
		sum := sha256.Sum256([]byte(id))
		return "%h" + hex.EncodeToString(sum[:])
	}
	return Escape(id)
}

// Escape percent-encodes the bytes of s that could be taken for structure: % { } : and everything below 0x21 or equal to 0x7f.
// Other bytes, those beyond ASCII included, stay as they are.
func Escape(s string) string {
	if plain(s) {
		return s // most strings, and no copy of them
	}
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

// plain reports whether no byte of s needs to be escaped.
func plain(s string) bool {
	for i := range len(s) {
		if special(s[i]) {
			return false
		}
	}
	return true
}

func special(c byte) bool {
	return c < 0x21 || c == 0x7f || c == '%' || c == '{' || c == '}' || c == ':'
}
