package bloom_test

import (
	"fmt"

	"github.com/tiercache/tiercache/bloom"
)

// A filter by itself: a set that is certain about what it does not hold.
func ExampleNew() {
	f, err := bloom.New(bloom.Options{Capacity: 1_000_000})
	if err != nil {
		fmt.Println(err)
		return
	}
	f.Add("product:1")
	fmt.Println(f.MayContain("product:1"), f.MayContain("product:2"))
	// Output: true false
}
