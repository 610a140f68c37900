package faulty

import (
	"context"
	"fmt"
	"strings"
)

var callKinds = append([]Kind{Panic, Goexit}, commandKinds...)

// Call makes any remote call under f's rules: op, which the rules know by name, node and what it is about. It returns what op
// returned, or a zero T and what befell it. Op may be run twice, at once too, and after Call has returned, under a context without an
// end; what such a run returns or panics with is dropped, so it must give back what it has to say only by returning it.
func Call[T any](ctx context.Context, f *Faults, name, node, about string, op func(context.Context) (T, error)) (T, error) {
	var value T
	run := func(ctx context.Context) (err error) {
		value, err = op(ctx)
		return err
	}
	x := f.strike(&call{
		names: []string{name}, node: node, suffers: callKinds,
		isAbout: func(part string) bool { return strings.Contains(about, part) },
	})
	if x == nil {
		err := f.pass(ctx, node, run)
		return value, err
	}
	err := f.carry(ctx, x, node, run, func(ctx context.Context) error {
		defer func() { _ = recover() }() // nobody is there to be told
		_, err := op(ctx)
		return err
	})
	return value, err
}

// Load is load under f's rules: a call named Loads, about its key. A Panic panics in the loader, a Delayed load is slow, a Timeout
// with a Delay is a load that does not heed its context.
func Load[K comparable, V any](f *Faults, load func(context.Context, K) (V, error)) func(context.Context, K) (V, error) {
	return func(ctx context.Context, key K) (V, error) {
		return Call(ctx, f, Loads, "", fmt.Sprint(key), func(ctx context.Context) (V, error) { return load(ctx, key) })
	}
}

// LoadMany is load under f's rules: one call named Loads, about all of its keys.
func LoadMany[K comparable, V any](f *Faults, load func(context.Context, []K) (map[K]V, error)) func(context.Context, []K) (map[K]V, error) {
	return func(ctx context.Context, keys []K) (map[K]V, error) {
		return Call(ctx, f, Loads, "", fmt.Sprint(keys), func(ctx context.Context) (map[K]V, error) { return load(ctx, keys) })
	}
}
