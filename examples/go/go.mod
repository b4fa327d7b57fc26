module attention-example

go 1.19
