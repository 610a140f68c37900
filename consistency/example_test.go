package consistency_test

import (
	"context"
	"fmt"

	"github.com/tiercache/tiercache/consistency"
)

// printing is an Invalidator that only says what it is asked for.
type printing struct{}

func (printing) Begin(context.Context) error {
	fmt.Println("delete, and keep reads short-lived")
	return nil
}
func (printing) Renew(context.Context) error { return nil }
func (printing) End(context.Context) error   { fmt.Println("delete again"); return nil }

// The write stands between two deletes; the second one is sent whatever becomes of it.
func ExampleDoubleDelete() {
	err := consistency.DoubleDelete(context.Background(), printing{}, 0, func(context.Context) error {
		fmt.Println("UPDATE products SET price = 12 WHERE id = 7")
		return nil
	})
	fmt.Println(err)
	// Output:
	// delete, and keep reads short-lived
	// UPDATE products SET price = 12 WHERE id = 7
	// delete again
	// <nil>
}
