package layers

import (
	"crypto/rand"
	"encoding/base64"
)

// Token names one attempt of one caller: who holds a lease, whose write is pending, who stored a value. Scripts compare tokens and never
// make them, so a call that is sent twice is known to be one call.
//
// It is 16 characters of the URL alphabet of base64, as NewToken makes it: 96 random bits.
type Token string

// tokenLength is the length of a Token and of its place in the envelope.
const tokenLength = 16

// NewToken returns a token that no one else has.
func NewToken() Token {
	var b [12]byte
	_, _ = rand.Read(b[:]) // never fails, as its documentation says
	return Token(base64.RawURLEncoding.EncodeToString(b[:]))
}

// Valid reports whether t has the form that NewToken gives.
func (t Token) Valid() bool {
	if len(t) != tokenLength {
		return false
	}
	for i := range len(t) {
		c := t[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return true
}
