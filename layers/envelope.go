package layers

import (
	"encoding/binary"
	"errors"
	"math"
	"strings"
	"time"

	"github.com/tiercache/tiercache/internal/rediskey"
)

// The envelope is what a value key holds in Redis: a header of fixed length, then the full key if the flag says so (two bytes of length,
// then the key), then the payload. Numbers are big-endian; moments are the server's, in milliseconds.
//
//	0  magic "tc"        3  flags          7  zero             24  soft end       48  load cost, us
//	2  format            4  codec          8  generation       32  hard end       52  token
//	                     5  schema (2)    16  stored at        40  row version    68  full key, payload
//
// A client sends the bytes 0-7 and 40-51 and what follows the header; the scripts write the moments, since only the server knows its time.
const (
	magic        = "tc"
	format       = 1
	headerLength = 68

	flagAbsent     = 1       // the source has no such key; no payload
	flagCompressed = 2       // not written by this version, which takes it for foreign
	flagVersioned  = 4       // the row version counts
	flagLongKey    = 8       // the full key follows the header
	flagMarker     = 16      // an announcement stands here: at once, or from the hard end of the value that covers it
	exact          = 1 << 53 // beyond every moment of a clock, and the last number that Lua counts exactly
	knownFlags     = flagAbsent | flagVersioned | flagLongKey | flagMarker
)

// envelope is a value key's content, taken apart.
type envelope struct {
	flags      byte
	codec      byte
	schema     uint16
	generation uint64
	stored     int64 // server ms, as are the next two
	soft, hard int64
	version    uint64
	cost       time.Duration
	token      Token
	id         string // the full key, if flagLongKey is set
	payload    string
}

var errForeign = errors.New("layers: not an envelope of this format")

// parse takes raw apart, which may be anything, into e, whose strings become parts of raw. A header that could be read is in e also
// with the error, so that the caller can say which copy it means to replace.
func (e *envelope) parse(raw string) error {
	if len(raw) < headerLength || raw[:2] != magic || raw[2] != format {
		return errForeign
	}
	// Field by field: a composite would be built elsewhere and copied.
	e.flags, e.codec, e.schema = raw[3], raw[4], uint16(raw[5])<<8|uint16(raw[6])
	e.generation = word(raw[8:])
	e.stored, e.soft, e.hard = int64(word(raw[16:])), int64(word(raw[24:])), int64(word(raw[32:])) //nolint:gosec // checked below
	e.version = word(raw[40:])
	e.cost = time.Duration(word(raw[44:])&0xffffffff) * time.Microsecond //nolint:gosec // 32 bits
	e.token, e.payload = Token(raw[52:68]), raw[headerLength:]
	if e.flags&^knownFlags != 0 || e.stored <= 0 || e.stored >= exact || e.soft < e.stored || e.hard < e.soft || e.hard-e.stored > farthest.Milliseconds() {
		return errForeign
	}
	if e.flags&flagLongKey == 0 {
		return nil
	}
	if len(e.payload) < 2 {
		return errForeign
	}
	n := int(e.payload[0])<<8 | int(e.payload[1])
	if len(e.payload) < 2+n {
		return errForeign
	}
	e.id, e.payload = e.payload[2:2+n], e.payload[2+n:]
	return nil
}

// parseEnvelope is parse into a new envelope.
func parseEnvelope(raw string) (e envelope, err error) {
	err = e.parse(raw)
	return e, err
}

// of reports whether e was stored for the key id. A short key is the Redis key itself; a long one is known by its hash only.
func (e *envelope) of(id string) bool {
	if !rediskey.Long(id) {
		return e.flags&flagLongKey == 0
	}
	return e.id == id || e.flags&flagMarker != 0 && e.flags&flagLongKey == 0 && e.payload == ""
}

// head returns the header's first eight bytes.
func head(flags, codec byte, schema uint16) string {
	return string([]byte{magic[0], magic[1], format, flags, codec, byte(schema >> 8), byte(schema), 0})
}

// tail returns the header's bytes 40-51. A cost beyond 71 minutes is written as that.
func tail(version uint64, cost time.Duration) string {
	var b [12]byte
	binary.BigEndian.PutUint64(b[:], version)
	us := min(max(cost.Microseconds(), 0), math.MaxUint32)
	binary.BigEndian.PutUint32(b[8:], uint32(us)) //nolint:gosec // bounded above
	return string(b[:])
}

// withKey appends the full key of a long id to dst, as it stands before the payload.
func withKey(dst []byte, id string) []byte {
	dst = append(dst, byte(len(id)>>8), byte(len(id)))
	return append(dst, id...)
}

// String returns the whole envelope, as the fill script writes it.
func (e *envelope) String() string {
	var b strings.Builder
	b.WriteString(head(e.flags, e.codec, e.schema))
	for _, n := range []uint64{e.generation, uint64(e.stored), uint64(e.soft), uint64(e.hard)} { //nolint:gosec // bits, not numbers
		var w [8]byte
		binary.BigEndian.PutUint64(w[:], n)
		b.Write(w[:])
	}
	b.WriteString(tail(e.version, e.cost))
	b.WriteString(string(e.token))
	if e.flags&flagLongKey != 0 {
		b.Write(withKey(nil, e.id))
	}
	b.WriteString(e.payload)
	return b.String()
}

// word reads eight bytes, the most significant first, without a copy of the string.
func word(s string) uint64 {
	_ = s[7]
	return uint64(s[0])<<56 | uint64(s[1])<<48 | uint64(s[2])<<40 | uint64(s[3])<<32 |
		uint64(s[4])<<24 | uint64(s[5])<<16 | uint64(s[6])<<8 | uint64(s[7])
}
