package layers

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
)

// Codec turns values into bytes for the shared tier and back.
//
// Implementations MUST be safe for concurrent use, MUST NOT keep dst, data or v, and MUST return an error for data that is not what
// Encode wrote: the library then takes the entry for a miss and replaces it. A panic counts as an error. Callers MUST tolerate that
// a value comes back in another form where the encoding does not keep it (JSON and unexported fields, say).
type Codec interface {
	// ID is the codec's number in the envelope: data of another number is a miss. 0 to 15 are the library's.
	ID() byte
	// Encode appends the value that v points to onto dst and returns the result.
	Encode(dst []byte, v any) ([]byte, error)
	// Decode sets the value that v points to. data is the codec's to change and to keep.
	Decode(data []byte, v any) error
}

var (
	// Raw is the codec for strings and byte slices, also of types of one's own whose kind they are: the bytes are the value.
	// Any other type is an error.
	Raw Codec = rawCodec{}
	// JSON is the codec of encoding/json.
	JSON Codec = jsonCodec{}
)

// ErrEncode is returned for a value that its codec could not encode; it wraps the codec's error. The value can be answered but not shared.
var ErrEncode = errors.New("layers: value cannot be encoded")

type rawCodec struct{}

func (rawCodec) ID() byte { return 1 }

func (rawCodec) Encode(dst []byte, v any) ([]byte, error) {
	switch p := v.(type) {
	case *string:
		return append(dst, *p...), nil
	case *[]byte:
		return append(dst, *p...), nil
	}
	switch e, kind := rawKind(v); kind {
	case reflect.String:
		return append(dst, e.String()...), nil
	case reflect.Slice:
		return append(dst, e.Bytes()...), nil
	default:
		return nil, rawError(v)
	}
}

func (c rawCodec) Decode(data []byte, v any) error { return c.decodeString(string(data), v) }

// decodeString spares strings the copy: what Redis answered is immutable already.
func (rawCodec) decodeString(data string, v any) error {
	switch p := v.(type) {
	case *string:
		*p = data
		return nil
	case *[]byte:
		*p = []byte(data)
		return nil
	}
	switch e, kind := rawKind(v); kind {
	case reflect.String:
		e.SetString(data)
	case reflect.Slice:
		e.SetBytes([]byte(data))
	default:
		return rawError(v)
	}
	return nil
}

// rawKind returns what v points to and reflect.String or reflect.Slice if the raw codec can carry it, else reflect.Invalid.
func rawKind(v any) (reflect.Value, reflect.Kind) {
	p := reflect.ValueOf(v)
	if p.Kind() != reflect.Pointer || p.IsNil() {
		return p, reflect.Invalid
	}
	e := p.Elem()
	if e.Kind() == reflect.String || e.Kind() == reflect.Slice && e.Type().Elem().Kind() == reflect.Uint8 {
		return e, e.Kind()
	}
	return e, reflect.Invalid
}

func rawError(v any) error {
	return fmt.Errorf("layers: the raw codec carries strings and byte slices, not %T", v)
}

type jsonCodec struct{}

func (jsonCodec) ID() byte { return 2 }

func (jsonCodec) Encode(dst []byte, v any) ([]byte, error) {
	b, err := json.Marshal(v)
	return append(dst, b...), err
}

func (jsonCodec) Decode(data []byte, v any) error { return json.Unmarshal(data, v) }

// encode calls the codec and makes an error of its panic: a value that one caller cannot encode must not harm the others who wait for it.
func encode(c Codec, dst []byte, v any) (b []byte, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	return c.Encode(dst, v)
}

// decode is the same for what Redis held, which may be anything.
func decode(c Codec, data string, v any) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("layers: the codec panicked: %v", r)
		}
	}()
	if s, ok := c.(interface{ decodeString(string, any) error }); ok {
		return s.decodeString(data, v)
	}
	return c.Decode([]byte(data), v)
}
