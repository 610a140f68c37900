package tiercache

import (
	"encoding"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"

	"github.com/tiercache/tiercache/layers"
)

// maxKeyBytes is the longest string form of a key; chosen; not tuned.
const maxKeyBytes = 8 << 10

// noKey stands for a key that has no string form: longer than any key may be, so that nothing is ever kept under it.
var noKey = strings.Repeat("\xff", maxKeyBytes+1)

// keyer knows the string form of keys, which is their identity in every tier.
type keyer[K comparable] struct {
	direct bool                    // K is its own identity: equal keys and equal string forms are the same thing
	form   func(K) (string, error) // the string form
	parse  func(string) (K, bool)  // the way back, which direct has always; nil: there is none
}

// newKeyer chooses the string form: keyString where given; else strings and integers by kind; else encoding.TextMarshaler; else
// fmt.Stringer. Any other type is an error.
func newKeyer[K comparable](keyString func(K) string) (keyer[K], error) {
	if keyString != nil {
		return keyer[K]{form: func(k K) (string, error) { return keyString(k), nil }}, nil
	}
	typ := reflect.TypeFor[K]()
	switch kind := typ.Kind(); kind {
	case reflect.String, reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		return keyer[K]{direct: true, form: formByKind[K], parse: parseByKind[K]}, nil
	default:
	}
	var k K
	if _, ok := any(k).(encoding.TextMarshaler); ok || typ.Implements(reflect.TypeFor[encoding.TextMarshaler]()) {
		return keyer[K]{parse: parserOfText[K](), form: func(k K) (string, error) {
			m, ok := any(k).(encoding.TextMarshaler)
			if !ok {
				return "", errNilKey
			}
			text, err := m.MarshalText()
			return string(text), err
		}}, nil
	}
	if typ.Implements(reflect.TypeFor[fmt.Stringer]()) {
		return keyer[K]{form: func(k K) (string, error) {
			s, ok := any(k).(fmt.Stringer)
			if !ok {
				return "", errNilKey
			}
			return s.String(), nil
		}}, nil
	}
	return keyer[K]{}, fmt.Errorf("keys of type %v have no string form: give KeyString, or a type that is a string, an integer, an encoding.TextMarshaler or a fmt.Stringer", typ)
}

// parserOfText is the way back for a type that unmarshals its text; nil for others.
func parserOfText[K comparable]() func(string) (K, bool) {
	if _, ok := any(new(K)).(encoding.TextUnmarshaler); !ok {
		return nil
	}
	return func(text string) (key K, ok bool) {
		u, ok := any(&key).(encoding.TextUnmarshaler)
		return key, ok && u.UnmarshalText([]byte(text)) == nil
	}
}

// backBy has parse, where it is given, be the way back. It is an error if there is none and one is needed.
func (k *keyer[K]) backBy(parse func(string) (K, error), needed bool) error {
	if parse != nil && !k.direct {
		k.parse = func(text string) (K, bool) {
			key, err := parse(text)
			return key, err == nil
		}
	}
	if needed && k.parse == nil {
		return fmt.Errorf("WarmList is set, but a key of type %v is not known from its string form: give ParseKey", reflect.TypeFor[K]())
	}
	return nil
}

// key returns the key of a string form, false if no key has it. Who asks must know that there is a way back. A parser that panics knows no key.
func (k keyer[K]) key(text string) (key K, ok bool) {
	defer func() {
		if recover() != nil {
			ok = false
		}
	}()
	if key, ok = k.parse(text); ok {
		form, err := k.form(key)
		ok = err == nil && form == text
	}
	return key, ok
}

// errNilKey is the error of a nil key of interface type.
var errNilKey = errors.New("it is nil")

// id returns key's string form, or an error if it has none or is too long.
func (k keyer[K]) id(key K) (string, error) {
	s, err := k.form(key)
	if err != nil {
		return "", fmt.Errorf("tiercache: the key has no string form: %w", err)
	}
	if len(s) > maxKeyBytes {
		return "", fmt.Errorf("tiercache: key of %d bytes: %w", len(s), layers.ErrKeyTooLong)
	}
	return s, nil
}

// text is id for the local tier, which knows no errors: a key without a string form gets one under which nothing is kept.
func (k keyer[K]) text(key K) string {
	s, err := k.form(key)
	if err != nil {
		return noKey
	}
	return s
}

// formByKind returns the string form of a string or an integer, whatever methods its type has. The common types need no reflection.
func formByKind[K comparable](key K) (string, error) {
	switch k := any(key).(type) {
	case string:
		return k, nil
	case int:
		return strconv.Itoa(k), nil
	case int64:
		return strconv.FormatInt(k, 10), nil
	case uint64:
		return strconv.FormatUint(k, 10), nil
	}
	v := reflect.ValueOf(key)
	switch {
	case v.Kind() == reflect.String:
		return v.String(), nil
	case v.CanInt():
		return strconv.FormatInt(v.Int(), 10), nil
	default:
		return strconv.FormatUint(v.Uint(), 10), nil
	}
}

// parseByKind returns the key of a string form that formByKind made; false for any other text, so that no two texts mean one key.
func parseByKind[K comparable](s string) (K, bool) {
	var key K
	v := reflect.ValueOf(&key).Elem()
	switch {
	case v.Kind() == reflect.String:
		v.SetString(s)
	case v.CanInt():
		n, err := strconv.ParseInt(s, 10, v.Type().Bits())
		if err != nil || strconv.FormatInt(n, 10) != s {
			return key, false
		}
		v.SetInt(n)
	default:
		n, err := strconv.ParseUint(s, 10, v.Type().Bits())
		if err != nil || strconv.FormatUint(n, 10) != s {
			return key, false
		}
		v.SetUint(n)
	}
	return key, true
}
