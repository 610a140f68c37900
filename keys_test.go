package tiercache

import (
	"encoding"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache/layers"
)

// shout is a string with methods that must not be asked.
type shout string

func (s shout) String() string               { return strings.ToUpper(string(s)) }
func (s shout) MarshalText() ([]byte, error) { return nil, errors.New("must not be asked") }

// weekday is an integer with a String method that must not be asked.
type weekday int8

func (d weekday) String() string { return "some day" }

// pair is a struct that is a fmt.Stringer.
type pair struct{ a, b int }

func (p pair) String() string { return fmt.Sprintf("%d/%d", p.a, p.b) }

// texted is both, and its text may fail.
type texted struct{ s string }

func (x texted) MarshalText() ([]byte, error) {
	if x.s == "bad" {
		return nil, errBadText
	}
	return []byte("text " + x.s), nil
}
func (x texted) String() string { return "string " + x.s }

var errBadText = errors.New("bad text")

// pointed has its methods on the pointer.
type pointed struct{ n int }

func (p *pointed) String() string { return fmt.Sprint("p", p.n) }

// wantForms wants the string form of each key, and for keys that are their own identity the way back.
func wantForms[K comparable](t *testing.T, direct bool, forms map[K]string) {
	t.Helper()
	keys, err := newKeyer[K](nil)
	require.NoError(t, err)
	require.Equal(t, direct, keys.direct, "%T", *new(K))
	for key, form := range forms {
		id, err := keys.id(key)
		require.NoError(t, err)
		require.Equal(t, form, id, "%T", key)
		require.Equal(t, form, keys.text(key))
		if direct {
			back, ok := keys.parse(form)
			require.True(t, ok, "parse %q to %T", form, key)
			require.Equal(t, key, back)
		}
	}
}

func TestStringFormsOfKeys(t *testing.T) {
	// A key's identity: strings and integers of every size by their kind, whatever methods their type has; else MarshalText; else String.
	wantForms(t, true, map[string]string{"": "", "a": "a", "a:b{c}%": "a:b{c}%", "\xff\x00": "\xff\x00"})
	wantForms(t, true, map[shout]string{"quiet": "quiet"})
	wantForms(t, true, map[weekday]string{-3: "-3", math.MaxInt8: "127"})
	wantForms(t, true, map[int]string{0: "0", math.MinInt: "-9223372036854775808"})
	wantForms(t, true, map[int8]string{math.MinInt8: "-128", math.MaxInt8: "127"})
	wantForms(t, true, map[int16]string{math.MinInt16: "-32768"})
	wantForms(t, true, map[int32]string{math.MinInt32: "-2147483648"})
	wantForms(t, true, map[int64]string{math.MinInt64: "-9223372036854775808", math.MaxInt64: "9223372036854775807"})
	wantForms(t, true, map[uint]string{math.MaxUint: "18446744073709551615"})
	wantForms(t, true, map[uint8]string{math.MaxUint8: "255"})
	wantForms(t, true, map[uint16]string{math.MaxUint16: "65535"})
	wantForms(t, true, map[uint32]string{math.MaxUint32: "4294967295"})
	wantForms(t, true, map[uint64]string{math.MaxUint64: "18446744073709551615"})
	wantForms(t, true, map[uintptr]string{7: "7"})
	wantForms(t, false, map[pair]string{{1, 2}: "1/2", {}: "0/0"})
	wantForms(t, false, map[texted]string{{"a"}: "text a"})
	wantForms(t, false, map[netip.Addr]string{netip.MustParseAddr("10.0.0.1"): "10.0.0.1"})
	wantForms(t, false, map[*pointed]string{{4}: "p4"})
	wantForms(t, false, map[fmt.Stringer]string{pair{1, 2}: "1/2", weekday(1): "some day"})
	wantForms(t, false, map[encoding.TextMarshaler]string{texted{"a"}: "text a"})
}

func TestTypesWithoutAStringFormAreRefused(t *testing.T) {
	// Anything else is an error of New that names the type and what would help; with KeyString any type will do.
	refused := func(err error, name string) {
		t.Helper()
		require.ErrorContains(t, err, name)
		require.ErrorContains(t, err, "KeyString")
	}
	type plain struct{ a int }
	_, err := newKeyer[plain](nil)
	refused(err, "tiercache.plain")
	_, err = newKeyer[float64](nil)
	refused(err, "float64")
	_, err = newKeyer[bool](nil)
	refused(err, "bool")
	_, err = newKeyer[[2]int](nil)
	refused(err, "[2]int")
	_, err = newKeyer[any](nil)
	refused(err, "interface {}")
	_, err = newKeyer[pointed](nil) // its String method is the pointer's
	refused(err, "tiercache.pointed")

	keys, err := newKeyer(func(p plain) string { return fmt.Sprint("plain ", p.a) })
	require.NoError(t, err)
	require.False(t, keys.direct)
	id, err := keys.id(plain{7})
	require.NoError(t, err)
	require.Equal(t, "plain 7", id)
	byString, err := newKeyer(strings.ToLower)
	require.NoError(t, err)
	require.False(t, byString.direct, "KeyString decides, for strings too: two keys may have one form")
}

func TestTextThatIsNoKeysFormIsNotParsed(t *testing.T) {
	// An event carries a key's form; a text that no key has, or that is a second spelling of one, must not be taken for a key.
	ints, err := newKeyer[int8](nil)
	require.NoError(t, err)
	for _, text := range []string{"", "+1", "01", "-0", "1 ", " 1", "0x1", "128", "-129", "1e1", "1_0", "one"} {
		_, ok := ints.parse(text)
		require.False(t, ok, "%q as an int8", text)
	}
	uints, err := newKeyer[uint8](nil)
	require.NoError(t, err)
	for _, text := range []string{"", "-1", "+1", "00", "256", "1.0"} {
		_, ok := uints.parse(text)
		require.False(t, ok, "%q as a uint8", text)
	}
}

func TestKeysThatCannotBeUsed(t *testing.T) {
	// A key over 8 KiB and a key whose text fails are errors; the local tier gets a form for them under which nothing is ever kept.
	keys, err := newKeyer[string](nil)
	require.NoError(t, err)
	_, err = keys.id(strings.Repeat("x", 8<<10))
	require.NoError(t, err)
	_, err = keys.id(strings.Repeat("x", 8<<10+1))
	require.ErrorIs(t, err, layers.ErrKeyTooLong)
	require.NotContains(t, err.Error(), "xx")

	texts, err := newKeyer[texted](nil)
	require.NoError(t, err)
	_, err = texts.id(texted{"bad"})
	require.ErrorIs(t, err, errBadText)
	require.Greater(t, len(texts.text(texted{"bad"})), maxKeyBytes)
}

func TestNilKeyOfAnInterfaceTypeIsAnError(t *testing.T) {
	// A nil where the key type is an interface has no string form: an error, not a panic.
	wantNilRefused[fmt.Stringer](t)
	wantNilRefused[encoding.TextMarshaler](t)
}

func wantNilRefused[K comparable](t *testing.T) {
	t.Helper()
	keys, err := newKeyer[K](nil)
	require.NoError(t, err)
	var none K
	require.NotPanics(t, func() {
		_, err = keys.id(none)
		require.ErrorContains(t, err, "no string form")
		require.Greater(t, len(keys.text(none)), maxKeyBytes)
	})
}

func FuzzParseIsTheWayBack(f *testing.F) {
	// Whatever a text means as an integer key, that key's form is the text again.
	for _, seed := range []string{"0", "-1", "007", "9223372036854775808", "-"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if key, ok := parseByKind[int64](text); ok {
			form, _ := formByKind(key)
			require.Equal(t, text, form)
		}
		if key, ok := parseByKind[uint16](text); ok {
			form, _ := formByKind(key)
			require.Equal(t, text, form)
		}
		key, ok := parseByKind[shout](text)
		require.True(t, ok)
		require.Equal(t, text, string(key))
	})
}
